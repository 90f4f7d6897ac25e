// Checks the tensors of a deformable convolution against each other.
#pragma once

#include <optional>
#include <vector>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "deform_shape.h"

namespace sdpt_ext {

using torch::stable::Tensor;

// Numbers per sample of an offset or mask tensor.
inline int64_t check_flat(const Tensor& field, const char* name, int64_t channels, const DeformShape& shape) {
  STD_TORCH_CHECK(field.dim() == 4 && field.size(0) == shape.batch && field.size(1) == channels,
                  "deform_conv2d: ", name, " must have shape (", shape.batch, ", ", channels, ", h, w)");
  const int64_t numel = channels * field.size(2) * field.size(3);
  STD_TORCH_CHECK(numel >= channels * shape.positions(),
                  "deform_conv2d: ", name, " of ", field.size(2), "x", field.size(3),
                  " is smaller than the output of ", shape.out_h(), "x", shape.out_w());
  return numel;
}

// The offset memory of a sample is read flat, as (2 * taps, out_h, out_w), whatever its own spatial size: GLIP feeds
// one offset map to branches of several sizes, and its trained weights contain that behaviour. So only too small a
// field is an error.
inline DeformShape check_deform_shape(const Tensor& input,
                                      const Tensor& offset,
                                      const std::optional<Tensor>& mask,
                                      const Tensor& weight,
                                      const std::vector<int64_t>& stride,
                                      const std::vector<int64_t>& padding) {
  STD_TORCH_CHECK(input.dim() == 4 && weight.dim() == 4, "deform_conv2d: input and weight must have 4 dimensions");
  STD_TORCH_CHECK(input.size(1) == weight.size(1),
                  "deform_conv2d: input has ", input.size(1), " channels, but weight expects ", weight.size(1));
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2, "deform_conv2d: stride and padding must have 2 numbers");
  STD_TORCH_CHECK(stride[0] > 0 && stride[1] > 0, "deform_conv2d: stride must be positive");
  STD_TORCH_CHECK(padding[0] >= 0 && padding[1] >= 0, "deform_conv2d: padding must not be negative");
  STD_TORCH_CHECK(weight.size(2) > 0 && weight.size(3) > 0, "deform_conv2d: weight has an empty kernel");
  const auto same_type = [&](const Tensor& other) { return other.scalar_type() == input.scalar_type(); };
  STD_TORCH_CHECK(same_type(offset) && same_type(weight) && (!mask || same_type(*mask)),
                  "deform_conv2d: input, offset, mask and weight must have one dtype");

  DeformShape shape{};
  shape.batch = input.size(0), shape.channels = input.size(1);
  shape.height = input.size(2), shape.width = input.size(3);
  shape.out_channels = weight.size(0), shape.kernel_h = weight.size(2), shape.kernel_w = weight.size(3);
  shape.stride_h = stride[0], shape.stride_w = stride[1];
  shape.pad_h = padding[0], shape.pad_w = padding[1];
  shape.offset_numel = check_flat(offset, "offset", 2 * shape.taps(), shape);
  shape.mask_numel = mask ? check_flat(*mask, "mask", shape.taps(), shape) : 0;
  return shape;
}

inline void check_bias(const std::optional<Tensor>& bias, const Tensor& input, const DeformShape& shape) {
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == shape.out_channels &&
                            bias->scalar_type() == input.scalar_type()),
                  "deform_conv2d: bias must have shape (", shape.out_channels, ") and the dtype of input");
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& input, const DeformShape& shape) {
  STD_TORCH_CHECK(grad_output.dim() == 4 && grad_output.size(0) == shape.batch &&
                      grad_output.size(1) == shape.out_channels && grad_output.size(2) == shape.out_h() &&
                      grad_output.size(3) == shape.out_w() && grad_output.scalar_type() == input.scalar_type(),
                  "deform_conv2d: the gradient must have shape (", shape.batch, ", ", shape.out_channels, ", ",
                  shape.out_h(), ", ", shape.out_w(), ") and the dtype of input");
}

}  // namespace sdpt_ext
