// Small helpers for tensors of the stable ABI.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace sdpt_ext {

using torch::stable::Tensor;

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(torch::stable::contiguous(*tensor)) : std::nullopt;
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()});
}

inline Tensor zeros(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_zeros(like, {sizes.data(), sizes.size()});
}

// (batch, height, width, channels) -> (batch, channels, height, width) in the same memory, "channels last".
inline Tensor as_channels_last(const Tensor& rows) {
  return torch::stable::transpose(torch::stable::transpose(rows, 1, 3), 2, 3);
}

inline Tensor sum_first(const Tensor& tensor) {
  const std::vector<int64_t> first{0};
  return torch::stable::sum(tensor, torch::headeronly::IntHeaderOnlyArrayRef(first));
}

}  // namespace sdpt_ext
