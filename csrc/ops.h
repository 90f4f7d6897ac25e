// Entry points of the operators, one per schema in register.cpp and device.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/tensor.h>

namespace sdpt_ext {

using torch::stable::Tensor;

// -> y, u, mass, image_lse, text_lse; see register.cpp.
using BiAttention = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor& x,
                                                                       const Tensor& keys,
                                                                       const Tensor& key_bias,
                                                                       const Tensor& values,
                                                                       const std::optional<Tensor>& prompts,
                                                                       const std::optional<Tensor>& image_mask,
                                                                       int64_t num_text,
                                                                       double dropout_p,
                                                                       int64_t seed,
                                                                       bool tf32);

// -> gradients of x, keys, key_bias, values, prompts; without prompts theirs has no elements.
using BiAttentionBackward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor& grad_y,
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
                                                                               int64_t seed,
                                                                               bool tf32);

// -> layer_norm(v) + offset + y, u, mass.
using BiAttentionResidual = std::tuple<Tensor, Tensor, Tensor>(const Tensor& v,
                                                               const Tensor& norm_weight,
                                                               const Tensor& norm_bias,
                                                               double norm_epsilon,
                                                               const Tensor& keys,
                                                               const Tensor& key_bias,
                                                               const Tensor& values,
                                                               const Tensor& offset,
                                                               const std::optional<Tensor>& prompts,
                                                               const std::optional<Tensor>& image_mask,
                                                               int64_t num_text);

// -> keys, key_bias and values with the prompts behind the text, and the prompts' image rows.
using JoinPrompts = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor& keys,
                                                               const Tensor& key_bias,
                                                               const Tensor& values,
                                                               const Tensor& tokens,
                                                               const Tensor& weight,
                                                               const Tensor& offset);

using JoinPromptsBackward = Tensor(const Tensor& grad_keys,
                                   const Tensor& grad_bias,
                                   const Tensor& grad_values,
                                   const Tensor& grad_image_rows,
                                   const Tensor& weight);

using DeformConv2d = Tensor(const Tensor& input,
                            const Tensor& offset,
                            const std::optional<Tensor>& mask,
                            const Tensor& weight,
                            const std::optional<Tensor>& bias,
                            const std::vector<int64_t>& stride,
                            const std::vector<int64_t>& padding);

// Gradients with respect to input, offset and mask; a gradient that is not needed comes back with no elements.
using DeformConv2dBackwardData = std::tuple<Tensor, Tensor, Tensor>(const Tensor& grad_output,
                                                                    const Tensor& input,
                                                                    const Tensor& offset,
                                                                    const std::optional<Tensor>& mask,
                                                                    const Tensor& weight,
                                                                    const std::vector<int64_t>& stride,
                                                                    const std::vector<int64_t>& padding,
                                                                    bool needs_input,
                                                                    bool needs_offset_or_mask);

using DeformConv2dBackwardWeight = Tensor(const Tensor& grad_output,
                                          const Tensor& input,
                                          const Tensor& offset,
                                          const std::optional<Tensor>& mask,
                                          const Tensor& weight,
                                          const std::vector<int64_t>& stride,
                                          const std::vector<int64_t>& padding);

using Nms = Tensor(const Tensor& boxes, const Tensor& scores, const Tensor& labels, double iou_threshold);

namespace cpu {

BiAttention bi_attention;
BiAttentionBackward bi_attention_backward;
BiAttentionResidual bi_attention_residual;
DeformConv2d deform_conv2d;
DeformConv2dBackwardData deform_conv2d_backward_data;
DeformConv2dBackwardWeight deform_conv2d_backward_weight;
Nms nms;

}  // namespace cpu

namespace cuda {

BiAttention bi_attention;
BiAttentionBackward bi_attention_backward;
JoinPrompts join_prompts;
JoinPromptsBackward join_prompts_backward;
DeformConv2d deform_conv2d;
DeformConv2dBackwardData deform_conv2d_backward_data;
DeformConv2dBackwardWeight deform_conv2d_backward_weight;
Nms nms;

}  // namespace cuda
}  // namespace sdpt_ext
