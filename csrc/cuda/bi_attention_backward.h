// Backward of bi_attention on the host: its tensors, and what every version of its kernels is told of them.
#pragma once

#include "bi_attention_image_backward.cuh"
#include "bi_attention_launch.cuh"
#include "bi_attention_text_backward.cuh"

namespace sdpt_ext::cuda {

struct Backward {
  Sizes shape;
  double dropout_p;
  int64_t seed;
  Tensor grad_y, grad_u, grad_mass, x, keys, key_bias, values;
  std::optional<Tensor> prompts, image_mask;
  Tensor u, mass, image_lse, text_lse;
  Tensor image_delta{}, text_delta{};
  Tensor grad_x{}, grad_keys{}, grad_bias{}, grad_values{}, prompt_sums{};

  template <typename Number>
  TextTerms<Number> terms() const {
    return {data<Number>(key_bias), data<Number>(text_lse), data<Number>(text_delta), data<Number>(grad_mass)};
  }
};

template <class Traits, typename Params>
void set_image_params(const Backward& b, Params& params) {
  using Element = typename Traits::Element;
  using Number = NumberOf<Element>;
  params.shape = b.shape;
  const int tiles = ceil_div(b.shape.image, Traits::kRows) + ceil_div(b.shape.prompts, Traits::kRows);
  params.work = {int64_t{b.shape.batch} * tiles, b.shape.heads / heads_of_step(b.shape), 1};
  params.dropout = Dropout<Number>::with(b.dropout_p, b.seed);
  params.x = data<Element>(b.x);
  params.prompts = data_or_null<Element>(b.prompts);
  params.grad_y = data<Element>(b.grad_y);
  params.visible = data_or_null<bool>(b.image_mask);
  params.image_lse = data<Number>(b.image_lse);
  params.text = b.terms<Number>();
  const TextOperand<Element> keys{data<Element>(b.keys), b.shape.tokens};
  const TextOperand<Element> values{data<Element>(b.values), b.shape.tokens};
  const TextOperand<Element> grad_u{data<Element>(b.grad_u), b.shape.text};
  const TextOperand<Element> operands[] = {keys, values, grad_u, keys, grad_u};
  std::copy(std::begin(operands), std::end(operands), params.operands);
  params.grad_x = mutable_data<Element>(b.grad_x);
  params.grad_prompts = mutable_data<Number>(b.prompt_sums);
  params.image_delta = mutable_data<Number>(b.image_delta);
}

template <class Traits, typename Params>
void set_text_params(const Backward& b, Params& params) {
  using Element = typename Traits::Element;
  using Number = NumberOf<Element>;
  params.shape = b.shape;
  params.work = {int64_t{b.shape.batch} * ceil_div(b.shape.heads * b.shape.tokens, Traits::kRows),
                 ImageStream<Traits, true>::items(b.shape), 1};
  params.dropout = Dropout<Number>::with(b.dropout_p, b.seed);
  params.image.rows = data<Element>(b.x);
  params.image.prompts = data_or_null<Element>(b.prompts);
  params.image.visible = data_or_null<bool>(b.image_mask);
  params.image.grads = data<Element>(b.grad_y);
  params.keys = data<Element>(b.keys);
  params.values = data<Element>(b.values);
  params.grad_u = data<Element>(b.grad_u);
  params.image.lse = data<Number>(b.image_lse);
  params.image.delta = data<Number>(b.image_delta);
  params.text = b.terms<Number>();
  params.grad_keys = mutable_data<Element>(b.grad_keys);
  params.grad_values = mutable_data<Element>(b.grad_values);
  params.grad_bias = mutable_data<Number>(b.grad_bias);
}

namespace hopper {

// Each direction on a Hopper's tensor cores, where the device, the build and the sizes allow it; else false.
bool run_image_backward(const Backward& b, const LaunchScope& scope);
bool run_text_backward(const Backward& b, const LaunchScope& scope);

}  // namespace hopper
}  // namespace sdpt_ext::cuda
