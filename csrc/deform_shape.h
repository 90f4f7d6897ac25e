// Sizes of one deformable convolution, checked once and shared by its forward and backward passes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/tensor.h>

namespace sdpt_ext {

struct DeformShape {
  int64_t batch, channels, height, width;
  int64_t out_channels, kernel_h, kernel_w;
  int64_t stride_h, stride_w, pad_h, pad_w;
  int64_t out_h, out_w;
  // Numbers per sample in the offset and mask memory; may exceed what the output needs (see check_deform_shape).
  int64_t offset_numel, mask_numel;

  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t positions() const { return out_h * out_w; }
  bool empty() const { return batch == 0 || out_channels == 0 || positions() == 0; }
};

// The offset memory of a sample is read flat, as (2 * taps, out_h, out_w), whatever its own spatial size: GLIP feeds
// one offset map to branches of several sizes, and its trained weights contain that behaviour.
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
