// How a backward pass is shared out between threads without two of them ever adding to the same number.
#pragma once

#include <algorithm>
#include <cstdint>

#include <torch/csrc/stable/ops.h>

#include "../deform_shape.h"

namespace sdpt_ext::cpu {

// Tasks are (group of samples) x (slice of input channels). Samples come first, as they share nothing; channels are
// cut only when there are fewer samples than threads, and never below what keeps the inner loops vectorised.
struct Slices {
  int64_t groups, channel_slices;

  explicit Slices(const DeformShape& shape) {
    constexpr int64_t kNarrowest = 32;
    const int64_t threads = torch::stable::get_num_threads();
    groups = std::min(shape.batch, threads);
    const int64_t wanted = (threads + groups - 1) / groups;
    channel_slices = std::max<int64_t>(1, std::min(wanted, shape.channels / kNarrowest));
  }

  int64_t tasks() const { return groups * channel_slices; }
};

}  // namespace sdpt_ext::cpu
