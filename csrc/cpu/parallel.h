// Independent tasks, shared out to torch's threads.
#pragma once

#include <cstdint>

#include <torch/csrc/stable/ops.h>

namespace sdpt_ext::cpu {

template <typename Task>
void parallel_each(int64_t count, const Task& task) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      task(index);
    }
  });
}

}  // namespace sdpt_ext::cpu
