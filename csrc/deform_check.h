// Checks the tensors of a deformable convolution against each other.
#pragma once

#include <optional>
#include <vector>

#include <torch/csrc/stable/tensor.h>

#include "deform_shape.h"

namespace sdpt_ext {

// The offset memory of a sample is read flat, as (2 * taps, out_h, out_w), whatever its own spatial size: GLIP feeds
// one offset map to branches of several sizes, and its trained weights contain that behaviour. So only too small a
// field is an error.
DeformShape check_deform_shape(const torch::stable::Tensor& input,
                               const torch::stable::Tensor& offset,
                               const std::optional<torch::stable::Tensor>& mask,
                               const torch::stable::Tensor& weight,
                               const std::vector<int64_t>& stride,
                               const std::vector<int64_t>& padding);

void check_grad_output(const torch::stable::Tensor& grad_output,
                       const torch::stable::Tensor& input,
                       const DeformShape& shape);

}  // namespace sdpt_ext
