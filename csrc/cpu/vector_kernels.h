// The innermost loops over contiguous channels, compiled for several instruction sets and chosen at run time.
#pragma once

#include <cstdint>

namespace sdpt_ext::cpu {

template <typename T>
struct VectorKernels {
  // out[i] = sum over the four rows of weight[r] * rows[r][i]
  void (*interpolate)(T* out, const T* const rows[4], const T weight[4], int64_t n);
  // products[r] = sum over i of x[i] * rows[r][i]
  void (*dot_rows)(T products[4], const T* x, const T* const rows[4], int64_t n);
  // y[i] += a * x[i]
  void (*add_scaled)(T* y, const T* x, T a, int64_t n);
  // out = (x - mean of x) / sqrt(variance of x + epsilon) * weight + bias; out may be x
  void (*normalise)(T* out, const T* x, const T* weight, const T* bias, T epsilon, int64_t n);
};

// The best set that this processor runs.
template <typename T>
const VectorKernels<T>& vector_kernels();

}  // namespace sdpt_ext::cpu
