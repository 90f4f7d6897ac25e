// Products of a warpgroup, 128 threads that share 64 rows, and the layout of tiles that its tensor cores read.
//
// A tile in shared memory consists of panels of 64 columns. A row of a panel is 128 bytes, whose 16-byte chunks are
// permuted within groups of eight rows: the chunk at byte b of row r stands at b ^ (r % 8 * 16).
#pragma once

#include "../softmax.cuh"
#include "ptx.cuh"

namespace sdpt_ext::cuda::hopper {

constexpr int kGroupThreads = 128;
constexpr int kGroupRows = 64;
constexpr int kWidth = 256;
constexpr int kPanelColumns = 64;
constexpr int kPanels = kWidth / kPanelColumns;
constexpr int kPanelRowBytes = 128;
constexpr int kRowsPerThread = 2;

// Row i of the two that a thread holds elements of, within those of its warpgroup.
__device__ __forceinline__ int row_of(int i) {
  return threadIdx.x % kGroupThreads / 32 * 16 + i * 8 + lane() / 4;
}

// The part of a (64, kColumns) matrix that one thread holds: in each block of 8 columns, two neighbours of two rows.
template <int kColumns>
struct Fragment {
  static constexpr int kBlocks = kColumns / 8;

  float values[kColumns / 2];

  __device__ __forceinline__ float& operator()(int i, int j, int k) { return values[4 * j + 2 * i + k]; }
  __device__ __forceinline__ static int column(int j) { return j * 8 + lane() % 4 * 2; }

  __device__ __forceinline__ void clear() {
    for_each([](float& value, int, int) { value = 0; });
  }
  // function(element, row of the thread's two, column)
  template <typename Function>
  __device__ __forceinline__ void for_each(const Function& function) {
    for_each_pair([&](float& first, float& second, int i, int column) {
      function(first, i, column);
      function(second, i, column + 1);
    });
  }
  // function(element, its right neighbour, row of the thread's two, column)
  template <typename Function>
  __device__ __forceinline__ void for_each_pair(const Function& function) {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        function((*this)(i, j, 0), (*this)(i, j, 1), i, column(j));
      }
    }
  }
  __device__ __forceinline__ void pin() {
    for_each([](float& value, int, int) { ptx::pin(value); });
  }
};

// function(row of the thread's two, column, the elements there)
template <typename Function, int kColumns, typename... Others>
__device__ __forceinline__ void for_each(const Function& function, Fragment<kColumns>& first, Others&... others) {
#pragma unroll
  for (int j = 0; j < first.kBlocks; ++j) {
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      function(i, first.column(j), first(i, j, 0), others(i, j, 0)...);
      function(i, first.column(j) + 1, first(i, j, 1), others(i, j, 1)...);
    }
  }
}

__device__ __forceinline__ float2 unpack(uint32_t pair, __half) {
  return __half22float2(reinterpret_cast<const __half2&>(pair));
}
__device__ __forceinline__ float2 unpack(uint32_t pair, __nv_bfloat16) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// A fragment rounded to elements: as it stands it is the left operand of products, 16 columns a step.
template <typename Element, int kColumns>
struct Packed {
  uint32_t pairs[kColumns / 4];

  Packed() = default;
  __device__ __forceinline__ explicit Packed(Fragment<kColumns>& values) {
    set(values, [](int, int) { return 1.0f; });
  }
  // From values times factor(row of the thread's two, which of two neighbours).
  template <typename Factor>
  __device__ __forceinline__ void set(Fragment<kColumns>& values, const Factor& factor) {
#pragma unroll
    for (int index = 0; index < kColumns / 4; ++index) {
      const int i = index % 2, j = index / 2;
      pairs[index] = ptx::pack(values(i, j, 0) * factor(i, 0), values(i, j, 1) * factor(i, 1), Element{});
    }
  }
  template <typename Factor>
  __device__ __forceinline__ void scale(const Factor& factor) {
#pragma unroll
    for (int index = 0; index < kColumns / 4; ++index) {
      const float2 pair = unpack(pairs[index], Element{});
      pairs[index] = ptx::pack(pair.x * factor(index % 2, 0), pair.y * factor(index % 2, 1), Element{});
    }
  }
};

// What wgmma knows of a matrix with swizzled rows of 128 bytes: `stride` bytes lead to the next 8 rows, `leading` bytes
// to the next panel (of matrices whose columns it does not add up over).
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  return uint64_t{address >> 4} | uint64_t{leading >> 4} << 16 | uint64_t{stride >> 4} << 32 | uint64_t{1} << 62;
}

constexpr uint32_t kEightRows = 8 * kPanelRowBytes;

// Around products: begin() hands a fragment over to the tensor cores, finish() waits for it, and for all products but
// the kPending last ones.
template <int kColumns>
__device__ __forceinline__ void begin(Fragment<kColumns>& c) {
  c.pin();
  ptx::wgmma_fence();
}

template <int kPending = 0, int kColumns>
__device__ __forceinline__ void finish(Fragment<kColumns>& c) {
  ptx::wgmma_wait<kPending>();
  c.pin();
}

// c = a b^T with tiles a (64, 256) and b (kColumns, 256), in its first kUsed columns where kUsed is not 0.
template <typename Element, int kUsed = 0, int kColumns>
__device__ __forceinline__ void multiply_transposed(Fragment<kColumns>& c, uint32_t a, uint32_t b) {
  constexpr int kNumbers = (kUsed > 0 ? kUsed : kColumns) / 2;
  auto& numbers = reinterpret_cast<float(&)[kNumbers]>(c.values);
  uint64_t left = descriptor(a, 16, kEightRows), right = descriptor(b, 16, kEightRows);
  ptx::pin(left);  // else the descriptors of all steps would stay in registers
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    const int panel = k / kPanelColumns, bytes = k % kPanelColumns * 2;
    ptx::wgmma(numbers, left + (panel * kGroupRows * kPanelRowBytes + bytes) / 16,
               right + (panel * kColumns * kPanelRowBytes + bytes) / 16, k > 0, Element{});
  }
  ptx::wgmma_commit();
}

// c += a b with a (64, kDepth) in registers and a tile b (kDepth, 256).
template <typename Element, int kDepth>
__device__ __forceinline__ void multiply(Fragment<kWidth>& c, const Packed<Element, kDepth>& a, uint32_t b) {
  const uint64_t right = descriptor(b, kDepth * kPanelRowBytes, kEightRows);
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    ptx::wgmma(c.values, a.pairs + k / 4, right + k * kPanelRowBytes / 16, Element{});
  }
  ptx::wgmma_commit();
}

// Combines what the four threads of each row hold, or of those every kStep-th.
template <int kStep = 1, typename Combine, int kCount>
__device__ __forceinline__ void reduce_rows(float (&value)[kCount], const Combine& combine) {
#pragma unroll
  for (int index = 0; index < kCount; ++index) {
#pragma unroll
    for (int step = kStep; step < 4; step *= 2) {
      value[index] = combine(value[index], __shfl_xor_sync(kAllLanes, value[index], step));
    }
  }
}

__device__ __forceinline__ bool speaks_for_row() { return lane() % 4 == 0; }

// Copies 64 rows of `width` columns to a tile (64, 256) and fills it up with zeros. row_of(i) is the address of row i
// or null. After a barrier products may read the tile.
template <typename Element, typename RowOf>
__device__ __forceinline__ void load_rows(uint32_t tile, int width, const RowOf& row_of) {
  constexpr int kChunks = kPanelRowBytes / 16;
  for (int index = threadIdx.x % kGroupThreads; index < kGroupRows * kPanels * kChunks; index += kGroupThreads) {
    const int chunk = index % (kPanels * kChunks), row = index / (kPanels * kChunks), column = chunk * 8;
    const int place = (chunk / kChunks * kGroupRows + row) * kPanelRowBytes + (chunk % kChunks * 16 ^ row % 8 * 16);
    const Element* source = row_of(row);
    const bool exists = source != nullptr && column < width;
    ptx::cp_async(tile + place, exists ? source + column : nullptr, exists);
  }
  ptx::cp_async_wait_all();
  ptx::fence_async();
}

// Rounds to a tile (64, 256) and sends it to the rows from `row` on of a matrix; rows that it lacks are left out.
template <typename Element>
__device__ __forceinline__ void store_tile(Fragment<kWidth>& values,
                                           Element* tile,
                                           const CUtensorMap* map,
                                           int row,
                                           int matrix,
                                           int barrier) {
  uint32_t row_of_first = row_of(0), swizzle = lane() / 4 * 16;
  ptx::pin(row_of_first), ptx::pin(swizzle);  // else the addresses would stay in registers from tile to tile
  unsigned char* bytes = reinterpret_cast<unsigned char*>(tile) + row_of_first * kPanelRowBytes + lane() % 4 * 4;
#pragma unroll
  for (int j = 0; j < values.kBlocks; ++j) {
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      const int place = (j / 8 * kGroupRows + i * 8) * kPanelRowBytes;
      *reinterpret_cast<uint32_t*>(bytes + place + ((j % 8 * 16) ^ swizzle)) =
          ptx::pack(values(i, j, 0), values(i, j, 1), Element{});
    }
  }
  ptx::fence_async();
  ptx::barrier_sync(barrier, kGroupThreads);
  if (threadIdx.x % kGroupThreads == 0) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      const Element* source = tile + panel * kGroupRows * kPanelColumns;
      ptx::store_box(map, panel * kPanelColumns, row, matrix, ptx::shared_address(source));
    }
    ptx::commit_stores();
    ptx::wait_for_store_reads();
  }
}

// Keeps a partial result unrounded, as rows of kWidth.
__device__ __forceinline__ void store_partial(Fragment<kWidth>& values, float* slot) {
  uint32_t place = row_of(0) * kWidth + values.column(0);
  ptx::pin(place);  // as above
#pragma unroll
  for (int j = 0; j < values.kBlocks; ++j) {
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      __stcg(reinterpret_cast<float2*>(slot + place + i * 8 * kWidth + j * 8),
             make_float2(values(i, j, 0), values(i, j, 1)));
    }
  }
}

}  // namespace sdpt_ext::cuda::hopper
