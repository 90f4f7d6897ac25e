// Calls a generic lambda with a value of the element type of a tensor.
#pragma once

#include <optional>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace sdpt_ext::cuda {

using torch::headeronly::ScalarType;

template <typename Body>
void dispatch_full(const torch::stable::Tensor& tensor, const char* op, const Body& body) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  op,
                  ": expected float32 or float64 tensors; convert the inputs first");
  type == ScalarType::Float ? body(float{}) : body(double{});
}

template <typename Body>
void dispatch_floating(const torch::stable::Tensor& tensor, const char* op, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return body(__half{});
    case ScalarType::BFloat16:
      return body(__nv_bfloat16{});
    default:
      dispatch_full(tensor, op, body);
  }
}

template <typename T>
const T* data(const torch::stable::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
const T* data_or_null(const std::optional<torch::stable::Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

template <typename T>
T* mutable_data(const torch::stable::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace sdpt_ext::cuda
