// Entry points of the operators, one per schema in register.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/tensor.h>

namespace sdpt_ext {

using torch::stable::Tensor;

namespace cpu {

Tensor deform_conv2d(const Tensor& input,
                     const Tensor& offset,
                     const std::optional<Tensor>& mask,
                     const Tensor& weight,
                     const std::optional<Tensor>& bias,
                     const std::vector<int64_t>& stride,
                     const std::vector<int64_t>& padding);

// Gradients with respect to input, offset and mask; a gradient that is not needed comes back with no elements.
std::tuple<Tensor, Tensor, Tensor> deform_conv2d_backward_data(const Tensor& grad_output,
                                                               const Tensor& input,
                                                               const Tensor& offset,
                                                               const std::optional<Tensor>& mask,
                                                               const Tensor& weight,
                                                               const std::vector<int64_t>& stride,
                                                               const std::vector<int64_t>& padding,
                                                               bool needs_input,
                                                               bool needs_offset_or_mask);

Tensor deform_conv2d_backward_weight(const Tensor& grad_output,
                                     const Tensor& input,
                                     const Tensor& offset,
                                     const std::optional<Tensor>& mask,
                                     const Tensor& weight,
                                     const std::vector<int64_t>& stride,
                                     const std::vector<int64_t>& padding);

Tensor nms(const Tensor& boxes, const Tensor& scores, const Tensor& labels, double iou_threshold);

}  // namespace cpu

namespace cuda {

Tensor nms(const Tensor& boxes, const Tensor& scores, const Tensor& labels, double iou_threshold);

}  // namespace cuda
}  // namespace sdpt_ext
