// From accumulators back to memory.
#pragma once

#include "mma.cuh"

namespace sdpt_ext::cuda {

// Rounds to the tile's element type.
template <typename Number, typename Element, int kColumns>
__device__ __forceinline__ void store(const Accumulator<kColumns, Number>& values, Tile<Element, kColumns> tile) {
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
#pragma unroll
    for (int j = 0; j < values.kBlocks; ++j) {
      store_pair(tile.at(row_of_thread(i), values.column(j)), values(i, j, 0), values(i, j, 1));
    }
  }
}

// Keeps a partial result, (rows, kColumns) unrounded.
template <typename Number, int kColumns>
__device__ __forceinline__ void store_partial(const Accumulator<kColumns, Number>& values, Number* slot) {
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
#pragma unroll
    for (int j = 0; j < values.kBlocks; ++j) {
      const auto pair = pair_of(values(i, j, 0), values(i, j, 1));
      // One store of the pair: from two, every sector would be written twice.
      __stcg(reinterpret_cast<std::decay_t<decltype(pair)>*>(slot + row_of_thread(i) * kColumns + values.column(j)),
             pair);
    }
  }
}

// Writes a finished tile to global memory in whole 16-byte chunks, through a tile in shared memory that nothing else
// uses any more. row_of(i) is the address of row i or null.
template <int kThreads, typename Number, typename Element, int kColumns, typename RowOf>
__device__ __forceinline__ void store_rows(const Accumulator<kColumns, Number>& values,
                                           Tile<Element, kColumns> tile,
                                           int rows,
                                           const RowOf& row_of,
                                           int width) {
  using T = Tile<Element, kColumns>;
  __syncthreads();
  store(values, tile);
  __syncthreads();
  for (int index = threadIdx.x; index < rows * T::kRowChunks; index += kThreads) {
    const int row = index / T::kRowChunks, column = index % T::kRowChunks * T::kChunk;
    Element* target = row_of(row);
    if (target != nullptr && column < width) {
      *reinterpret_cast<uint4*>(target + column) = *reinterpret_cast<const uint4*>(tile.chunk(row, column));
    }
  }
}

}  // namespace sdpt_ext::cuda
