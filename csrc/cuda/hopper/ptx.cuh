// The PTX instructions of compute capability 9.0 that the tensor cores of whole warpgroups and the tensor memory
// accelerator need, one function each. Addresses are of shared memory, as shared_address gives them.
#pragma once

#include <cuda.h>

#include "../ptx.cuh"

namespace sdpt_ext::cuda::ptx {

// ---- barriers in shared memory that count arrivals and bytes

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers known to asynchronous copies.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives and announces bytes that copies will bring.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Whether the phase of this parity is complete; waits a while for it.
__device__ __forceinline__ bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// A barrier among some of the block's warps; 0 is that of __syncthreads.
__device__ __forceinline__ void barrier_sync(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- copies of boxes of a tensor

__device__ __forceinline__ void load_box(
    uint32_t destination, const CUtensorMap* map, int column, int row, int matrix, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(destination),
      "l"(map), "r"(column), "r"(row), "r"(matrix), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void load_box(
    uint32_t destination, const CUtensorMap* map, int column, int head, int token, int batch, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(destination),
      "l"(map), "r"(column), "r"(head), "r"(token), "r"(batch), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void store_box(const CUtensorMap* map, int column, int row, int matrix, uint32_t source) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map),
               "r"(column), "r"(row), "r"(matrix), "r"(source)
               : "memory");
}

__device__ __forceinline__ void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Until the sources of all stores have been read.
__device__ __forceinline__ void wait_for_store_reads() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// Until all stores have reached memory.
__device__ __forceinline__ void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// Shows what threads wrote to shared memory to asynchronous copies and to wgmma.
__device__ __forceinline__ void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- registers of a warpgroup

template <uint32_t kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

template <uint32_t kCount>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// ---- pairs of elements as operands of products, the first one in the low half

// Volatile: the compiler would round where the pair is used, and until then keep two registers for one.
__device__ __forceinline__ uint32_t pack(float first, float second, __half) {
  uint32_t pair;
  asm volatile("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

__device__ __forceinline__ uint32_t pack(float first, float second, __nv_bfloat16) {
  uint32_t pair;
  asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

// ---- products of warpgroups

// Before the first product that touches registers which threads have written.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most kPending of the groups committed last are in flight.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of a register across this place, such as of one that a product in flight owns.
__device__ __forceinline__ void pin(float& value) {
  asm volatile("" : "+f"(value)::"memory");
}
__device__ __forceinline__ void pin(uint32_t& value) {
  asm volatile("" : "+r"(value)::"memory");
}
__device__ __forceinline__ void pin(uint64_t& value) {
  asm volatile("" : "+l"(value)::"memory");
}

#define SDPT_EXT_REGISTERS_16                                                                            \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define SDPT_EXT_REGISTERS_20                                                                            \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19}"
#define SDPT_EXT_REGISTERS_24                                                                            \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "\
  "%22, %23}"
#define SDPT_EXT_REGISTERS_40                                                                            \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "\
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39}"
#define SDPT_EXT_REGISTERS_48                                                                            \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "\
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47}"
#define SDPT_EXT_REGISTERS_64                                                                            \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "     \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "      \
  "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "      \
  "%59, %60, %61, %62, %63}"
#define SDPT_EXT_REGISTERS_80                                                                            \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "     \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "      \
  "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "      \
  "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "      \
  "%78, %79}"
#define SDPT_EXT_REGISTERS_128                                                                           \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "\
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, "\
  "%102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, "\
  "%119, %120, %121, %122, %123, %124, %125, %126, %127}"

#define SDPT_EXT_OWN_4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define SDPT_EXT_OWN_16(i) SDPT_EXT_OWN_4(i), SDPT_EXT_OWN_4(i + 4), SDPT_EXT_OWN_4(i + 8), SDPT_EXT_OWN_4(i + 12)
#define SDPT_EXT_OWN_20(i) SDPT_EXT_OWN_16(i), SDPT_EXT_OWN_4(i + 16)
#define SDPT_EXT_OWN_24(i) SDPT_EXT_OWN_16(i), SDPT_EXT_OWN_4(i + 16), SDPT_EXT_OWN_4(i + 20)
#define SDPT_EXT_OWN_40(i) SDPT_EXT_OWN_24(i), SDPT_EXT_OWN_16(i + 24)
#define SDPT_EXT_OWN_48(i) SDPT_EXT_OWN_16(i), SDPT_EXT_OWN_16(i + 16), SDPT_EXT_OWN_16(i + 32)
#define SDPT_EXT_OWN_64(i) SDPT_EXT_OWN_48(i), SDPT_EXT_OWN_16(i + 48)
#define SDPT_EXT_OWN_80(i) SDPT_EXT_OWN_40(i), SDPT_EXT_OWN_40(i + 40)
#define SDPT_EXT_OWN_128(i) SDPT_EXT_OWN_64(i), SDPT_EXT_OWN_64(i + 64)

// c = a b^T, or c += a b^T where accumulate is set, for a (64, 16) and b (kColumns, 16) in shared memory. kCount is the
// number of accumulators of a thread; a, b and accumulate are the operands that follow them.
#define SDPT_EXT_WGMMA_SHARED(kCount, kShape, kType, kA, kB, kAccumulate)                                        \
  asm volatile(                                                                                                  \
      "{\n.reg .pred p;\nsetp.ne.b32 p, " kAccumulate ", 0;\n"                                                     \
      "wgmma.mma_async.sync.aligned." kShape ".f32." kType "." kType " " SDPT_EXT_REGISTERS_##kCount ", " kA ", " kB \
      ", p, 1, 1, 0, 0;\n}"                                                                                      \
      : SDPT_EXT_OWN_##kCount(0)                                                                                 \
      : "l"(a), "l"(b), "r"(int{accumulate}))

__device__ __forceinline__ void wgmma(float (&c)[16], uint64_t a, uint64_t b, bool accumulate, __half) {
  SDPT_EXT_WGMMA_SHARED(16, "m64n32k16", "f16", "%16", "%17", "%18");
}
__device__ __forceinline__ void wgmma(float (&c)[16], uint64_t a, uint64_t b, bool accumulate, __nv_bfloat16) {
  SDPT_EXT_WGMMA_SHARED(16, "m64n32k16", "bf16", "%16", "%17", "%18");
}
__device__ __forceinline__ void wgmma(float (&c)[20], uint64_t a, uint64_t b, bool accumulate, __half) {
  SDPT_EXT_WGMMA_SHARED(20, "m64n40k16", "f16", "%20", "%21", "%22");
}
__device__ __forceinline__ void wgmma(float (&c)[20], uint64_t a, uint64_t b, bool accumulate, __nv_bfloat16) {
  SDPT_EXT_WGMMA_SHARED(20, "m64n40k16", "bf16", "%20", "%21", "%22");
}
__device__ __forceinline__ void wgmma(float (&c)[24], uint64_t a, uint64_t b, bool accumulate, __half) {
  SDPT_EXT_WGMMA_SHARED(24, "m64n48k16", "f16", "%24", "%25", "%26");
}
__device__ __forceinline__ void wgmma(float (&c)[24], uint64_t a, uint64_t b, bool accumulate, __nv_bfloat16) {
  SDPT_EXT_WGMMA_SHARED(24, "m64n48k16", "bf16", "%24", "%25", "%26");
}
__device__ __forceinline__ void wgmma(float (&c)[40], uint64_t a, uint64_t b, bool accumulate, __half) {
  SDPT_EXT_WGMMA_SHARED(40, "m64n80k16", "f16", "%40", "%41", "%42");
}
__device__ __forceinline__ void wgmma(float (&c)[40], uint64_t a, uint64_t b, bool accumulate, __nv_bfloat16) {
  SDPT_EXT_WGMMA_SHARED(40, "m64n80k16", "bf16", "%40", "%41", "%42");
}
__device__ __forceinline__ void wgmma(float (&c)[48], uint64_t a, uint64_t b, bool accumulate, __half) {
  SDPT_EXT_WGMMA_SHARED(48, "m64n96k16", "f16", "%48", "%49", "%50");
}
__device__ __forceinline__ void wgmma(float (&c)[48], uint64_t a, uint64_t b, bool accumulate, __nv_bfloat16) {
  SDPT_EXT_WGMMA_SHARED(48, "m64n96k16", "bf16", "%48", "%49", "%50");
}
__device__ __forceinline__ void wgmma(float (&c)[64], uint64_t a, uint64_t b, bool accumulate, __half) {
  SDPT_EXT_WGMMA_SHARED(64, "m64n128k16", "f16", "%64", "%65", "%66");
}
__device__ __forceinline__ void wgmma(float (&c)[64], uint64_t a, uint64_t b, bool accumulate, __nv_bfloat16) {
  SDPT_EXT_WGMMA_SHARED(64, "m64n128k16", "bf16", "%64", "%65", "%66");
}
__device__ __forceinline__ void wgmma(float (&c)[80], uint64_t a, uint64_t b, bool accumulate, __half) {
  SDPT_EXT_WGMMA_SHARED(80, "m64n160k16", "f16", "%80", "%81", "%82");
}
__device__ __forceinline__ void wgmma(float (&c)[80], uint64_t a, uint64_t b, bool accumulate, __nv_bfloat16) {
  SDPT_EXT_WGMMA_SHARED(80, "m64n160k16", "bf16", "%80", "%81", "%82");
}

// c += a b for a (64, 16) in registers and b (16, 256) in shared memory, whose rows are contiguous.
#define SDPT_EXT_WGMMA_REGISTERS(kType)                                                                           \
  asm volatile(                                                                                                  \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." kType "." kType " " SDPT_EXT_REGISTERS_128                    \
      ", {%128, %129, %130, %131}, %132, p, 1, 1, 1;\n}"                                                         \
      : SDPT_EXT_OWN_128(0)                                                                                      \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))

__device__ __forceinline__ void wgmma(float (&c)[128], const uint32_t* a, uint64_t b, __half) {
  SDPT_EXT_WGMMA_REGISTERS("f16");
}
__device__ __forceinline__ void wgmma(float (&c)[128], const uint32_t* a, uint64_t b, __nv_bfloat16) {
  SDPT_EXT_WGMMA_REGISTERS("bf16");
}

#undef SDPT_EXT_WGMMA_REGISTERS
#undef SDPT_EXT_WGMMA_SHARED
#undef SDPT_EXT_OWN_128
#undef SDPT_EXT_OWN_80
#undef SDPT_EXT_OWN_64
#undef SDPT_EXT_OWN_48
#undef SDPT_EXT_OWN_40
#undef SDPT_EXT_OWN_24
#undef SDPT_EXT_OWN_20
#undef SDPT_EXT_OWN_16
#undef SDPT_EXT_OWN_4
#undef SDPT_EXT_REGISTERS_128
#undef SDPT_EXT_REGISTERS_80
#undef SDPT_EXT_REGISTERS_64
#undef SDPT_EXT_REGISTERS_48
#undef SDPT_EXT_REGISTERS_40
#undef SDPT_EXT_REGISTERS_24
#undef SDPT_EXT_REGISTERS_20
#undef SDPT_EXT_REGISTERS_16

}  // namespace sdpt_ext::cuda::ptx
