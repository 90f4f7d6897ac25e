// Checks the tensors of a suppression against each other.
#pragma once

#include <cstdint>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace sdpt_ext {

// The number of boxes.
inline int64_t check_nms(const torch::stable::Tensor& boxes,
                         const torch::stable::Tensor& scores,
                         const torch::stable::Tensor& labels) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, "nms: boxes must have shape (N, 4)");
  const int64_t count = boxes.size(0);
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == count && scores.scalar_type() == boxes.scalar_type(),
                  "nms: scores must have shape (", count, ") and the dtype of boxes");
  STD_TORCH_CHECK(labels.dim() == 1 && labels.size(0) == count && labels.scalar_type() == ScalarType::Long,
                  "nms: labels must have shape (", count, ") and dtype int64");
  return count;
}

}  // namespace sdpt_ext
