// Adds partial results slot by slot, in the order of the blocks that left them. A warp merges one row.
#pragma once

#include "epilogue.cuh"
#include "work.cuh"

namespace sdpt_ext::cuda {

constexpr int kMergeThreads = 256;
constexpr int kMergeRows = kMergeThreads / 32;

__device__ __forceinline__ int merge_row() {
  return blockIdx.y * kMergeRows + threadIdx.x / 32;
}

template <typename Body>
__device__ __forceinline__ void for_each_slot(const SharedTile& tile, const Body& body) {
  for (int64_t block = tile.first_block; block <= tile.last_block; ++block) {
    body(tile.slot(block));
  }
}

// Two neighbouring columns at `first` of every slot, times weight(slot).
template <typename Number, typename Weight>
__device__ __forceinline__ auto sum_slots(const SharedTile& tile,
                                          const Number* first,
                                          int64_t slot_size,
                                          const Weight& weight) {
  auto sum = pair_of(Number(0), Number(0));
  for_each_slot(tile, [&](int64_t slot) {
    const auto part = load_pair(first + slot * slot_size);
    const Number factor = weight(slot);
    sum.x += factor * part.x;
    sum.y += factor * part.y;
  });
  return sum;
}

// value(column) gives two columns of the row.
template <typename Element, typename Value>
__device__ __forceinline__ void merge_columns(Element* target, int width, const Value& value) {
  for (int column = 2 * lane(); column < width; column += 64) {
    const auto pair = value(column);
    store_pair(target + column, pair.x, pair.y);
  }
}

}  // namespace sdpt_ext::cuda
