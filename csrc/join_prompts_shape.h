// Sizes of prompts that join a text, checked once for every device.
#pragma once

#include <cstdint>
#include <initializer_list>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace sdpt_ext {

struct JoinPromptsShape {
  int64_t batch, heads, text, width;  // keys, values
  int64_t count, depth;               // tokens
  // What one token is mapped to: an image row, and for every head a key, its bias and a value.
  int64_t outputs = width + heads * (2 * width + 1);
  int64_t joined = text + count;
};

inline bool has_shape(const torch::stable::Tensor& tensor, std::initializer_list<int64_t> sizes) {
  if (tensor.dim() != static_cast<int64_t>(sizes.size())) {
    return false;
  }
  int64_t axis = 0;
  for (const int64_t size : sizes) {
    if (tensor.size(axis++) != size) {
      return false;
    }
  }
  return true;
}

inline JoinPromptsShape check_join_prompts(const torch::stable::Tensor& keys,
                                           const torch::stable::Tensor& key_bias,
                                           const torch::stable::Tensor& values,
                                           const torch::stable::Tensor& tokens,
                                           const torch::stable::Tensor& weight,
                                           const torch::stable::Tensor& offset) {
  STD_TORCH_CHECK(keys.dim() == 4 && tokens.dim() == 2,
                  "join_prompts: expected keys (B, H, L, D) and tokens (K, E)");
  const JoinPromptsShape shape{
      keys.size(0), keys.size(1), keys.size(2), keys.size(3), tokens.size(0), tokens.size(1)};
  STD_TORCH_CHECK(has_shape(values, {shape.batch, shape.heads, shape.text, shape.width}) &&
                      has_shape(key_bias, {shape.batch, shape.heads, shape.text}) &&
                      values.scalar_type() == keys.scalar_type() && key_bias.scalar_type() == keys.scalar_type(),
                  "join_prompts: values and key_bias must have the shape of keys, key_bias without D, and its dtype");
  STD_TORCH_CHECK(has_shape(weight, {shape.outputs, shape.depth}) && has_shape(offset, {shape.outputs}) &&
                      weight.scalar_type() == tokens.scalar_type() && offset.scalar_type() == tokens.scalar_type(),
                  "join_prompts: weight must have shape (",
                  shape.outputs,
                  ", ",
                  shape.depth,
                  "), offset its first, both the dtype of tokens");
  return shape;
}

}  // namespace sdpt_ext
