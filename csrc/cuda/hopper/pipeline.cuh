// Tiles in shared memory that one warpgroup fills with asynchronous copies and two others use.
#pragma once

#include "warpgroup.cuh"

// Kernels that other architectures can't hold compile to nothing there, for blocks of one warp: by this
// is_compiled() knows them.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SDPT_EXT_HOPPER
#define SDPT_EXT_HOPPER_BOUNDS __launch_bounds__(hopper::kThreads, 1)
#else
#define SDPT_EXT_HOPPER_BOUNDS __launch_bounds__(32)
#endif

namespace sdpt_ext::cuda::hopper {

constexpr int kConsumers = 2;  // warpgroups, after that of the producer
constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
constexpr int kRows = kConsumers * kGroupRows;
// Of a thread: together they fit into a multiprocessor's 65,536.
constexpr uint32_t kProducerRegisters = 32, kConsumerRegisters = 240;

__device__ __forceinline__ void wait_for_phase(const uint64_t& barrier, uint32_t parity) {
  const uint32_t address = ptx::shared_address(&barrier);
  while (!ptx::mbarrier_try_wait(address, parity)) {
  }
}

__device__ __forceinline__ void arrive(uint64_t& barrier) { ptx::mbarrier_arrive(ptx::shared_address(&barrier)); }

constexpr uint32_t kGroupTileBytes = kGroupRows * kWidth * 2;

// By one thread, to a tile of `bytes` bytes, whose arrival completes at the barrier. place: where the map's boxes start,
// in all dimensions after the columns.
template <typename... Place>
__device__ __forceinline__ void load_panels(
    uint32_t tile, uint32_t bytes, uint32_t barrier, const CUtensorMap* map, Place... place) {
  for (int panel = 0; panel < kPanels; ++panel) {
    ptx::load_box(tile + panel * (bytes / kPanels), map, panel * kPanelColumns, place..., barrier);
  }
}

// Rows of a matrix from `row` on.
struct Box {
  const CUtensorMap* map;
  int row, matrix;

  __device__ __forceinline__ void load(uint32_t tile, uint32_t bytes, uint32_t barrier) const {
    load_panels(tile, bytes, barrier, map, row, matrix);
  }
};

// Some heads of some tokens; the heads of a token come one after another.
struct HeadBox {
  const CUtensorMap* map;
  int head, token, batch;

  __device__ __forceinline__ void load(uint32_t tile, uint32_t bytes, uint32_t barrier) const {
    load_panels(tile, bytes, barrier, map, head, token, batch);
  }
};

// Whether tiles that stay while others stream past, a set for every consuming warpgroup, are there or done with.
struct Residence {
  uint64_t full[kConsumers], empty[kConsumers];

  // By one thread.
  __device__ void init() {
    for (int group = 0; group < kConsumers; ++group) {
      ptx::mbarrier_init(ptx::shared_address(&full[group]), 1);
      ptx::mbarrier_init(ptx::shared_address(&empty[group]), kGroupThreads);
    }
  }
  // By the producer; load(barrier) starts copies of `bytes` bytes in all.
  template <typename Load>
  __device__ __forceinline__ void fill(int group, uint32_t parity, uint32_t bytes, const Load& load) {
    if (threadIdx.x == 0) {
      wait_for_phase(empty[group], parity);
      const uint32_t barrier = ptx::shared_address(&full[group]);
      ptx::mbarrier_arrive_expect(barrier, bytes);
      load(barrier);
    }
  }
};

// Tiles of kTileRows rows, each with Terms beside it. The owner aligns it to 1024 bytes: of its own accord it would
// also be padded to them, and memory is scarce.
template <typename Element, int kTileRows, int kStages_, typename Terms>
struct Ring {
  static constexpr int kStages = kStages_;
  static constexpr uint32_t kBytes = kTileRows * kWidth * sizeof(Element);

  Element tiles[kStages][kTileRows * kWidth];
  alignas(16) Terms terms[kStages];
  uint64_t full[kStages], empty[kStages];

  // By one thread.
  __device__ void init() {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(ptx::shared_address(&full[stage]), kGroupThreads);
      ptx::mbarrier_init(ptx::shared_address(&empty[stage]), kConsumers * kGroupThreads / 32);
    }
  }
};

// Where the producer or a consumer stands in the ring.
template <typename Ring>
struct Cursor {
  Ring& ring;
  int stage = 0;
  uint32_t parity = 0;

  __device__ explicit Cursor(Ring& memory) : ring(memory) {}

  __device__ void advance() {
    if (++stage == Ring::kStages) {
      stage = 0, parity ^= 1;
    }
  }
  __device__ uint32_t tile() const { return ptx::shared_address(ring.tiles[stage]); }
  __device__ auto& terms() const { return ring.terms[stage]; }

  // For all threads of the producer. set(terms, i) sets the i-th of `count` terms.
  template <class Source, typename Set>
  __device__ __forceinline__ void fill(const Source& source, int count, const Set& set) {
    wait_for_phase(ring.empty[stage], parity ^ 1);
#pragma unroll 1  // the producer has few registers
    for (int i = threadIdx.x; i < count; i += kGroupThreads) {
      set(terms(), i);
    }
    const uint32_t full = ptx::shared_address(&ring.full[stage]);
    if (threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect(full, Ring::kBytes);
      source.load(tile(), Ring::kBytes, full);
    } else {
      ptx::mbarrier_arrive(full);
    }
    advance();
  }
  template <class Source>
  __device__ __forceinline__ void fill(const Source& source) {
    fill(source, 0, [](auto&, int) {});
  }

  // For consumers: until the tile is there; and when a warp needs it no more.
  __device__ __forceinline__ void wait() const { wait_for_phase(ring.full[stage], parity); }
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane() == 0) {
      arrive(ring.empty[stage]);
    }
    advance();
  }
};

// The first warpgroup produces, the others consume; most registers go to those.
template <class Kernel>
__device__ __forceinline__ void run_warpgroups(Kernel kernel) {
  if (threadIdx.x == 0) {
    kernel.init();
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  const int group = threadIdx.x / kGroupThreads;
  if (group == 0) {
    ptx::give_registers<kProducerRegisters>();
    kernel.produce();
  } else {
    ptx::take_registers<kConsumerRegisters>();
    kernel.consume(group - 1);
  }
}

}  // namespace sdpt_ext::cuda::hopper
