// Calls a generic lambda with a value of the element type of a tensor: float or double.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace sdpt_ext::cpu {

template <typename Body>
auto dispatch_floating(const torch::stable::Tensor& tensor, const char* op, const Body& body) {
  using torch::headeronly::ScalarType;
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  op,
                  ": expected float32 or float64 tensors; convert the inputs first");
  return type == ScalarType::Float ? body(float{}) : body(double{});
}

}  // namespace sdpt_ext::cpu
