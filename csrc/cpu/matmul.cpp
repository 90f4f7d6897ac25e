#include "matmul.h"

#include <array>
#include <type_traits>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

namespace sdpt_ext::cpu {
namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
Tensor borrow(const Matrix<T>& matrix) {
  using Element = std::remove_const_t<T>;
  const std::array<int64_t, 2> sizes{matrix.rows, matrix.columns};
  const std::array<int64_t, 2> strides{matrix.row_stride, matrix.column_stride};
  return torch::stable::from_blob(const_cast<Element*>(matrix.data),
                                  {sizes.data(), sizes.size()},
                                  {strides.data(), strides.size()},
                                  torch::stable::Device(DeviceType::CPU),
                                  std::is_same_v<Element, float> ? ScalarType::Float : ScalarType::Double);
}

}  // namespace

// The shims of single operators are used, not the dispatcher: they look nothing up by name and meet no autograd or
// tracing state, which other threads of a parallel region would not share.
template <typename T>
void matmul(const Matrix<T>& out, const Matrix<const T>& a, const Matrix<const T>& b, Store store) {
  const Tensor result = borrow(out), left = borrow(a), right = borrow(b);
  if (store == Store::kOverwrite) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(result.get(), left.get(), right.get()));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(result.get(), result.get(), left.get(), right.get(), 1.0, 1.0));
  }
}

template void matmul(const Matrix<float>&, const Matrix<const float>&, const Matrix<const float>&, Store);
template void matmul(const Matrix<double>&, const Matrix<const double>&, const Matrix<const double>&, Store);

}  // namespace sdpt_ext::cpu
