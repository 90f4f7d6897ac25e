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

// -> y, u, mass, image_lse, text_lse; see register.cpp.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bi_attention(const Tensor& x,
                                                                const Tensor& keys,
                                                                const Tensor& key_bias,
                                                                const Tensor& values,
                                                                const std::optional<Tensor>& prompts,
                                                                const std::optional<Tensor>& image_mask,
                                                                int64_t num_text,
                                                                double dropout_p,
                                                                int64_t seed);

// -> gradients of x, keys, key_bias, values, prompts; without prompts theirs has no elements.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bi_attention_backward(const Tensor& grad_y,
                                                                         const Tensor& grad_u,
                                                                         const Tensor& grad_mass,
                                                                         const Tensor& x,
                                                                         const Tensor& keys,
                                                                         const Tensor& key_bias,
                                                                         const Tensor& values,
                                                                         const std::optional<Tensor>& prompts,
                                                                         const std::optional<Tensor>& image_mask,
                                                                         const Tensor& u,
                                                                         const Tensor& mass,
                                                                         const Tensor& image_lse,
                                                                         const Tensor& text_lse,
                                                                         int64_t num_text,
                                                                         double dropout_p,
                                                                         int64_t seed);

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

// -> y, u, mass, image_lse, text_lse; see register.cpp.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bi_attention(const Tensor& x,
                                                                const Tensor& keys,
                                                                const Tensor& key_bias,
                                                                const Tensor& values,
                                                                const std::optional<Tensor>& prompts,
                                                                const std::optional<Tensor>& image_mask,
                                                                int64_t num_text,
                                                                double dropout_p,
                                                                int64_t seed);

// -> gradients of x, keys, key_bias, values, prompts; without prompts theirs has no elements.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bi_attention_backward(const Tensor& grad_y,
                                                                         const Tensor& grad_u,
                                                                         const Tensor& grad_mass,
                                                                         const Tensor& x,
                                                                         const Tensor& keys,
                                                                         const Tensor& key_bias,
                                                                         const Tensor& values,
                                                                         const std::optional<Tensor>& prompts,
                                                                         const std::optional<Tensor>& image_mask,
                                                                         const Tensor& u,
                                                                         const Tensor& mass,
                                                                         const Tensor& image_lse,
                                                                         const Tensor& text_lse,
                                                                         int64_t num_text,
                                                                         double dropout_p,
                                                                         int64_t seed);

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

}  // namespace cuda
}  // namespace sdpt_ext
