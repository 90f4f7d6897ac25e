// Memory layouts and scratch space.
#pragma once

#include <cstdint>
#include <memory>

#include "../tensors.h"

namespace sdpt_ext::cpu {

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

}  // namespace sdpt_ext::cpu
