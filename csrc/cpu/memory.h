// Memory layouts and scratch space.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include "../tensors.h"

namespace sdpt_ext::cpu {

// A cache line: a vector register never reads across two.
constexpr std::align_val_t kAlignment{64};

struct FreeAligned {
  void operator()(void* data) const { ::operator delete(data, kAlignment); }
};

template <typename T>
using Scratch = std::unique_ptr<T[], FreeAligned>;

// Uninitialised, unlike a std::vector.
template <typename T>
Scratch<T> scratch(int64_t numel) {
  static_assert(std::is_trivial_v<T>);
  return Scratch<T>(static_cast<T*>(::operator new(numel * sizeof(T), kAlignment)));
}

// The same values, stored (batch, height, width, channels): a bilinear sample then reads contiguous channels.
inline Tensor channels_last(const Tensor& tensor) {
  return torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast);
}

}  // namespace sdpt_ext::cpu
