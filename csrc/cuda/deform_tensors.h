// The tensors of a deformable convolution in the layouts that its kernels read.
#pragma once

#include <cstdint>

#include "../deform_check.h"
#include "../tensors.h"

namespace sdpt_ext::cuda {

// (A, B, C) -> the same values contiguous, C padded with zeros to whole 16-byte chunks, every row on a 16-byte address.
inline Tensor aligned_rows(const Tensor& tensor) {
  const int64_t chunk = 16 / tensor.element_size(), extra = (chunk - tensor.size(2) % chunk) % chunk;
  const Tensor packed = torch::stable::contiguous(tensor);
  if (extra != 0) {
    const std::vector<int64_t> padding{0, extra};
    return torch::stable::pad(packed, {padding.data(), padding.size()});
  }
  return reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 16 == 0 ? packed : torch::stable::clone(packed);
}

// (batch, channels, height, width) -> (batch, pixels, channels); no copy where memory is laid out like that already.
inline Tensor channels_last_rows(const Tensor& tensor) {
  return aligned_rows(torch::stable::transpose(torch::stable::flatten(tensor, 2, 3), 1, 2));
}

// The type that sums of half-precision numbers are kept in.
inline torch::headeronly::ScalarType sum_type(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty_sums(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, sum_type(like));
}

inline Tensor zeros_of(const Tensor& like, const std::vector<int64_t>& sizes, torch::headeronly::ScalarType type) {
  return torch::stable::new_zeros(like, {sizes.data(), sizes.size()}, type);
}

}  // namespace sdpt_ext::cuda
