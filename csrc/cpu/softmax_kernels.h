// The loops of attention over one row of scores, compiled for several instruction sets and chosen at run time.
//
// `keep` holds the factors of dropout, all 1 without it.
#pragma once

#include <cstdint>

namespace sdpt_ext::cpu {

// What one image row of one head needs to turn its scores into their gradient.
template <typename Number>
struct GradientRow {
  Number* scores;          // (tokens), replaced by their gradient
  Number* weights;         // (tokens) gradient of the weights over tokens, replaced by the weights; null: a prompt row
  Number* row_weights;     // (text) gradient of the row's weight for each text token, replaced by the weights
  Number* text_part;       // (tokens) scratch, zeros from `text` on
  Number* grad_bias;       // (tokens), added to
  const Number* bias;      // (tokens)
  const Number* keep;      // (tokens) dropout of the weights over tokens
  const Number* row_keep;  // (text) dropout of the row's weights
  const Number* text_lse;  // (text)
  const Number* text_delta;  // (text) gradient of u and mass times their values
  const Number* grad_mass;   // (text)
  Number image_lse;
  int64_t tokens, text;
};

template <typename Number>
struct SoftmaxKernels {
  // weights = softmax(scores + bias) * keep, for each of the adjacent heads; lse, unless it is null, is +inf where
  // nothing is seen.
  void (*normalise)(Number* weights,
                    const Number* scores,
                    const Number* bias,
                    const Number* keep,
                    Number* lse,
                    int64_t lse_stride,
                    int64_t heads,
                    int64_t tokens);
  // maximum = max(maximum, scores)
  void (*raise)(Number* maximum, const Number* scores, int64_t n);
  // scores = exp(scores - maximum) * keep; the exponentials are added to total, what is kept of them to kept.
  void (*exponentiate)(
      Number* scores, const Number* maximum, const Number* keep, Number* total, Number* kept, int64_t n);
  void (*differentiate)(const GradientRow<Number>& row);
  // keep[i] = scale where mix(keys[i] ^ counter) >= threshold, else 0
  void (*draw)(Number* keep, const uint32_t* keys, uint32_t counter, uint32_t threshold, Number scale, int64_t n);
};

template <typename Number>
const SoftmaxKernels<Number>& softmax_kernels();

// float32 to bfloat16, to nearest.
struct RoundingKernels {
  void (*narrow)(uint16_t* out, const float* values, int64_t n);
  // out[i] = high[i], low[i] in the upper and lower half
  void (*narrow_pairs)(uint32_t* out, const float* low, const float* high, int64_t n);
};

const RoundingKernels& rounding_kernels();

}  // namespace sdpt_ext::cpu
