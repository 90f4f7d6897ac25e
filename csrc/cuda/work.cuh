// Equal shares of the work for every thread block, however many tiles there are.
//
// A tile takes `items` steps (heads, or tiles of the other side). All steps of all tiles stand in one line, and each
// block gets an equal contiguous piece of it. A block that does not do all steps of a tile leaves a partial result in a
// slot; `merge` kernels add the slots of a tile in the order of the blocks, so results do not depend on timing.
#pragma once

#include <cstdint>

namespace sdpt_ext::cuda {

struct Work {
  int64_t tiles;
  int items;
  int blocks;

  __host__ __device__ int64_t steps() const { return tiles * items; }
  __host__ __device__ int64_t first_step(int64_t block) const { return steps() * block / blocks; }
};

// The steps [begin, end) of one tile. slot is -1 where they are all steps of the tile.
struct Segment {
  int64_t tile;
  int begin, end;
  int64_t slot;
};

constexpr int kSlotsPerBlock = 2;  // only the first and the last segment of a block can be partial

// Calls body(segment) for each piece of this block's share.
template <typename Body>
__device__ __forceinline__ void for_each_segment(const Work& work, const Body& body) {
  const int64_t first = work.first_step(blockIdx.x), last = work.first_step(blockIdx.x + 1);
  for (int64_t step = first; step < last;) {
    Segment segment;
    segment.tile = step / work.items;
    segment.begin = static_cast<int>(step - segment.tile * work.items);
    segment.end = static_cast<int>(min(int64_t{work.items}, segment.begin + last - step));
    const bool whole = segment.end - segment.begin == work.items;
    segment.slot = whole ? -1 : int64_t{blockIdx.x} * kSlotsPerBlock + (step != first);
    step += segment.end - segment.begin;
    body(segment);
  }
}

// The partial results of one tile that several blocks share, in the order in which they are added.
struct SharedTile {
  int64_t tile, first_block, last_block, first_slot;

  __device__ int64_t slot(int64_t block) const {
    return block == first_block ? first_slot : block * kSlotsPerBlock;
  }
};

// Between blocks `boundary` and `boundary + 1`. False where no tile is cut there, or where an earlier boundary cut it.
__device__ inline bool find_shared_tile(const Work& work, int64_t boundary, SharedTile& shared) {
  const int64_t cut = work.first_step(boundary + 1), before = work.first_step(boundary);
  shared.tile = cut / work.items;
  const int64_t start = shared.tile * work.items;
  if (cut == start || before > start) {
    return false;
  }
  shared.first_block = shared.last_block = boundary;
  shared.first_slot = boundary * kSlotsPerBlock + (before != start);
  while (work.first_step(shared.last_block + 1) < start + work.items) {
    ++shared.last_block;
  }
  return true;
}

}  // namespace sdpt_ext::cuda
