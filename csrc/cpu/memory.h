// Memory layouts and scratch space.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>

namespace sdpt_ext::cpu {

using torch::stable::Tensor;

// Uninitialised, unlike a std::vector.
template <typename T>
std::unique_ptr<T[]> scratch(int64_t numel) {
  return std::unique_ptr<T[]>(new T[numel]);
}

// The same values, stored (batch, height, width, channels): a bilinear sample then reads contiguous channels.
inline Tensor channels_last(const Tensor& tensor) {
  return torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast);
}

// (batch, height, width, channels) -> contiguous (batch, channels, height, width).
inline Tensor channels_first(const Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::transpose(torch::stable::transpose(tensor, 2, 3), 1, 2));
}

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

inline Tensor sum_first(const Tensor& tensor) {
  const std::vector<int64_t> first{0};
  return torch::stable::sum(tensor, torch::headeronly::IntHeaderOnlyArrayRef(first));
}

}  // namespace sdpt_ext::cpu
