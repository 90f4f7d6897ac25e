// A matrix in shared memory whose 16-byte chunks are permuted so that eight rows of one column never share a bank.
#pragma once

#include "ptx.cuh"

namespace sdpt_ext::cuda {

template <typename Element, int kColumns>
struct Tile {
  static constexpr int kChunk = 16 / sizeof(Element);  // elements that move together
  static constexpr int kRowChunks = kColumns / kChunk;
  // Chunks trade places inside aligned groups of this many: the largest power of two that divides a row, at most 8.
  static constexpr int kGroup = (kRowChunks & -kRowChunks) < 8 ? (kRowChunks & -kRowChunks) : 8;
  static_assert(kColumns % kChunk == 0, "a row must consist of whole chunks");

  Element* data;

  // column must be a multiple of kChunk.
  __device__ Element* chunk(int row, int column) const {
    const int swizzle = (row / (8 / kGroup)) % kGroup;
    return data + row * kColumns + ((column / kChunk) ^ swizzle) * kChunk;
  }
  __device__ Element* at(int row, int column) const {
    return chunk(row, column / kChunk * kChunk) + column % kChunk;
  }
};

// Consecutive rows in global memory; rows past the end count as zeros.
template <typename Element>
struct Rows {
  const Element* base;
  int count;
  int stride;

  __device__ const Element* operator()(int row) const {
    return row < count ? base + int64_t{row} * stride : nullptr;
  }
};

// Starts to copy kRows rows; row_of(i) is the address of row i or null. Columns from `width` on become zeros.
template <int kRows, int kThreads, typename Element, int kColumns, typename RowOf>
__device__ __forceinline__ void load_tile(Tile<Element, kColumns> tile, const RowOf& row_of, int width) {
  using T = Tile<Element, kColumns>;
  constexpr int kChunks = kRows * T::kRowChunks;
#pragma unroll 1  // unrolled, it would keep the addresses of every step in registers
  for (int first = 0; first < kChunks; first += kThreads) {
    const int index = first + threadIdx.x;
    if (kChunks % kThreads == 0 || index < kChunks) {
      const int row = index / T::kRowChunks, column = index % T::kRowChunks * T::kChunk;
      const Element* source = row_of(row);
      const bool valid = source != nullptr && column < width;
      ptx::cp_async(tile.chunk(row, column), valid ? source + column : nullptr, valid);
    }
  }
}

}  // namespace sdpt_ext::cuda
