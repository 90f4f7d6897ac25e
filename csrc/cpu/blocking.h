// How the work of a deformable convolution is cut: blocks that fit the caches, parts that threads never share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../deform_shape.h"

namespace sdpt_ext::cpu {

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Part `index` of `parts` nearly equal ones.
inline Range share(int64_t total, int64_t parts, int64_t index) {
  return {total * index / parts, total * (index + 1) / parts};
}

// The positions of one sample in blocks whose sampled columns, (positions, taps, channels), stay in the caches. They
// are not small, since every block passes over all filters, or over their gradient. The threads that work on one sample
// get equally many.
struct Blocks {
  int64_t positions, count;

  Blocks(const DeformShape& shape, int64_t channels, int64_t element_size, int64_t threads = 1)
      : positions(shape.positions()) {
    constexpr int64_t kColumnBytes = int64_t{3} << 20;
    constexpr int64_t kShortest = 32;
    const int64_t position_bytes = shape.taps() * std::max<int64_t>(channels, 1) * element_size;
    const int64_t longest = std::max(kColumnBytes / position_bytes, kShortest);
    const int64_t sharers = (threads + shape.batch - 1) / shape.batch;
    const int64_t rounds = (positions + longest * sharers - 1) / (longest * sharers);
    count = std::min(rounds * sharers, std::max<int64_t>(positions / kShortest, 1));
  }

  Range operator[](int64_t index) const { return share(positions, count, index); }
  int64_t longest() const { return (positions + count - 1) / count; }
};

// Tasks of a backward pass, (group of samples) x (slice of input channels): no two of them add to the same number.
// Samples come first, as they share nothing; channels are cut only when there are fewer samples than threads, and
// never below what keeps the inner loops vectorised.
struct BackwardTasks {
  int64_t sample_groups, channel_slices;

  BackwardTasks(const DeformShape& shape, int64_t threads) {
    constexpr int64_t kNarrowest = 32;
    sample_groups = std::max<int64_t>(1, std::min(shape.batch, threads));
    const int64_t wanted = (threads + sample_groups - 1) / sample_groups;
    channel_slices = std::max<int64_t>(1, std::min(wanted, shape.channels / kNarrowest));
  }

  int64_t count() const { return sample_groups * channel_slices; }
};

}  // namespace sdpt_ext::cpu
