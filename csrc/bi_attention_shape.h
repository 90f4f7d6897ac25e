// Sizes of a bi-directional attention, checked once for every device. Header only: each device's library has its own.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace sdpt_ext {

struct BiAttentionShape {
  int64_t batch, positions, width;  // x
  int64_t heads, tokens;            // keys, values
  int64_t text;                     // the first of the tokens, which gather from the image
  int64_t prompts;

  int64_t columns() const { return heads * tokens; }
};

inline torch::headeronly::ScalarType accumulation_type(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  return type == ScalarType::BFloat16 || type == ScalarType::Half ? ScalarType::Float : type;
}

inline BiAttentionShape check_bi_attention(const torch::stable::Tensor& x,
                                           const torch::stable::Tensor& keys,
                                           const torch::stable::Tensor& key_bias,
                                           const torch::stable::Tensor& values,
                                           const std::optional<torch::stable::Tensor>& prompts,
                                           const std::optional<torch::stable::Tensor>& image_mask,
                                           int64_t num_text,
                                           double dropout_p) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(x.dim() == 3 && keys.dim() == 4 && key_bias.dim() == 3 && values.dim() == 4,
                  "bi_attention: expected x (B, N, D), keys (B, H, T, D), key_bias (B, H, T) and values (B, H, T, D)");
  const BiAttentionShape shape{
      x.size(0), x.size(1), x.size(2), keys.size(1), keys.size(2), num_text, prompts ? prompts->size(0) : 0};
  for (const torch::stable::Tensor* rows : {&keys, &values}) {
    STD_TORCH_CHECK(rows->size(0) == shape.batch && rows->size(1) == shape.heads && rows->size(2) == shape.tokens &&
                        rows->size(3) == shape.width && rows->scalar_type() == x.scalar_type(),
                    "bi_attention: keys and values must have shape (",
                    shape.batch,
                    ", H, T, ",
                    shape.width,
                    ") and the dtype of x");
  }
  STD_TORCH_CHECK(key_bias.size(0) == shape.batch && key_bias.size(1) == shape.heads &&
                      key_bias.size(2) == shape.tokens && key_bias.scalar_type() == accumulation_type(x.scalar_type()),
                  "bi_attention: key_bias must have shape (",
                  shape.batch,
                  ", ",
                  shape.heads,
                  ", ",
                  shape.tokens,
                  ") and the dtype of x, or float32 where that is a half type");
  STD_TORCH_CHECK(
      !prompts || (prompts->dim() == 2 && prompts->size(1) == shape.width && prompts->scalar_type() == x.scalar_type()),
      "bi_attention: prompts must have shape (K, ",
      shape.width,
      ") and the dtype of x");
  STD_TORCH_CHECK(
      !image_mask || (image_mask->dim() == 2 && image_mask->size(0) == shape.batch &&
                      image_mask->size(1) == shape.positions && image_mask->scalar_type() == ScalarType::Bool),
      "bi_attention: image_mask must be a bool tensor of shape (",
      shape.batch,
      ", ",
      shape.positions,
      ")");
  STD_TORCH_CHECK(num_text >= 0 && num_text <= shape.tokens,
                  "bi_attention: num_text must be between 0 and ",
                  shape.tokens,
                  ", got ",
                  num_text);
  STD_TORCH_CHECK(
      dropout_p >= 0 && dropout_p < 1, "bi_attention: dropout_p must be at least 0 and below 1, got ", dropout_p);
  return shape;
}

inline void check_like(const torch::stable::Tensor& tensor,
                       const char* name,
                       const std::vector<int64_t>& sizes,
                       const torch::stable::Tensor& like) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size()) && tensor.scalar_type() == like.scalar_type();
  for (size_t dim = 0; fits && dim < sizes.size(); ++dim) {
    fits = tensor.size(dim) == sizes[dim];
  }
  STD_TORCH_CHECK(fits, "bi_attention_backward: ", name, " has another shape or dtype than in the forward pass");
}

// What backward gets beside the inputs of forward.
inline void check_bi_attention_saved(const BiAttentionShape& shape,
                                     const torch::stable::Tensor& x,
                                     const torch::stable::Tensor& key_bias,
                                     const torch::stable::Tensor& grad_y,
                                     const torch::stable::Tensor& grad_u,
                                     const torch::stable::Tensor& grad_mass,
                                     const torch::stable::Tensor& u,
                                     const torch::stable::Tensor& mass,
                                     const torch::stable::Tensor& image_lse,
                                     const torch::stable::Tensor& text_lse) {
  const std::vector<int64_t> gathered{shape.batch, shape.heads, shape.text, shape.width};
  const std::vector<int64_t> per_text{shape.batch, shape.heads, shape.text};
  check_like(grad_y, "grad_y", {shape.batch, shape.positions, shape.width}, x);
  check_like(grad_u, "grad_u", gathered, x);
  check_like(grad_mass, "grad_mass", per_text, key_bias);
  check_like(u, "u", gathered, x);
  check_like(mass, "mass", per_text, key_bias);
  check_like(image_lse, "image_lse", {shape.batch, shape.heads, shape.positions}, key_bias);
  check_like(text_lse, "text_lse", per_text, key_bias);
}

}  // namespace sdpt_ext
