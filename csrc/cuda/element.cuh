// What numbers in memory are, and what products and softmaxes of them are computed in.
#pragma once

#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace sdpt_ext::cuda {

// A float32 of which tensor cores multiply the first 11 digits.
struct Tf32 {
  float value;
};

template <typename Element>
using NumberOf = std::conditional_t<std::is_same_v<Element, double>, double, float>;

template <typename Element>
constexpr bool kOnTensorCores = sizeof(Element) == 2 || std::is_same_v<Element, Tf32>;

}  // namespace sdpt_ext::cuda
