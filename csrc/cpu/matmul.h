// Products of strided matrices in plain memory, computed by the BLAS that torch was built with.
#pragma once

#include <cstdint>

namespace sdpt_ext::cpu {

template <typename T>
struct Matrix {
  T* data;
  int64_t rows, columns;
  int64_t row_stride, column_stride;

  Matrix transposed() const { return {data, columns, rows, column_stride, row_stride}; }
};

template <typename T>
Matrix<T> row_major(T* data, int64_t rows, int64_t columns) {
  return {data, rows, columns, columns, 1};
}

enum class Store { kOverwrite, kAccumulate };

// out = a b, or out += a b. Runs on the calling thread alone inside a parallel region.
template <typename T>
void matmul(const Matrix<T>& out, const Matrix<const T>& a, const Matrix<const T>& b, Store store);

}  // namespace sdpt_ext::cpu
