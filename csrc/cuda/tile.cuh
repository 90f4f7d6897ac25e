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

  static constexpr unsigned kRowBytes = kColumns * sizeof(Element);

  Element* data;

  // The chunk at byte b of a row stands at byte b ^ swizzle(row). Rows that are a multiple of 8 apart share it.
  __device__ static unsigned swizzle(unsigned row) { return row / (8 / kGroup) % kGroup * 16; }

  // column must be a multiple of kChunk.
  __device__ Element* chunk(unsigned row, unsigned column) const {
    return data + row * kColumns + ((column / kChunk * 16) ^ swizzle(row)) / sizeof(Element);
  }
  __device__ Element* at(unsigned row, unsigned column) const {
    return chunk(row, column / kChunk * kChunk) + column % kChunk;
  }
  // The same as addresses in shared memory.
  __device__ uint32_t row_address(unsigned row) const { return ptx::shared_address(data) + row * kRowBytes; }
  __device__ uint32_t address(unsigned row, unsigned column) const {
    return row_address(row) + ((column / kChunk * 16) ^ swizzle(row));
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
#pragma unroll 1  // unrolled, it would keep the addresses of every step in registers
  for (unsigned index = threadIdx.x; index < kRows * T::kRowChunks; index += kThreads) {
    const unsigned row = index / T::kRowChunks, column = index % T::kRowChunks * T::kChunk;
    const Element* source = row_of(row);
    const bool valid = source != nullptr && static_cast<int>(column) < width;
    ptx::cp_async(tile.address(row, column), valid ? source + column : nullptr, valid);
  }
}

// Consecutive rows: where a step goes on by a multiple of 8 rows, a thread stays in its column and only adds.
template <int kRows, int kThreads, typename Element, int kColumns>
__device__ __forceinline__ void load_tile(Tile<Element, kColumns> tile, const Rows<Element>& rows, int width) {
  using T = Tile<Element, kColumns>;
  constexpr int kStep = kThreads / T::kRowChunks;
  if constexpr (kThreads % T::kRowChunks != 0 || kStep % 8 != 0) {
    load_tile<kRows, kThreads, Element, kColumns, Rows<Element>>(tile, rows, width);
  } else {
    const unsigned row = threadIdx.x / T::kRowChunks, column = threadIdx.x % T::kRowChunks * T::kChunk;
    const int count = static_cast<int>(column) < width ? rows.count : 0;
    const Element* source = rows.base + int64_t{row} * rows.stride + column;
    uint32_t target = tile.address(row, column);
#pragma unroll 4
    for (int next = row; next < kRows; next += kStep) {
      ptx::cp_async(target, next < count ? source : nullptr, next < count);
      source += int64_t{kStep} * rows.stride;
      target += kStep * T::kRowBytes;
    }
  }
}

}  // namespace sdpt_ext::cuda
