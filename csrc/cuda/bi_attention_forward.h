// Forward of bi_attention on the host: its tensors, and what every version of its kernels is told of them.
#pragma once

#include "bi_attention_image_forward.cuh"
#include "bi_attention_launch.cuh"
#include "bi_attention_text_forward.cuh"

namespace sdpt_ext::cuda {

struct Forward {
  Sizes shape;
  double dropout_p;
  int64_t seed;
  Tensor x, keys, key_bias, values;
  std::optional<Tensor> prompts, image_mask;
  Tensor y{}, u{}, mass{}, image_lse{}, text_lse{};
};

template <class Traits, typename Params>
void set_image_params(const Forward& f, Params& params) {
  using Element = typename Traits::Element;
  using Number = NumberOf<Element>;
  params.shape = f.shape;
  params.work = {int64_t{f.shape.batch} * ceil_div(f.shape.image, Traits::kRows),
                 f.shape.heads / heads_of_step(f.shape), 1};
  params.dropout = Dropout<Number>::with(f.dropout_p, f.seed);
  params.x = data<Element>(f.x);
  params.key_bias = data<Number>(f.key_bias);
  params.operands[0] = {data<Element>(f.keys), f.shape.tokens};
  params.operands[1] = {data<Element>(f.values), f.shape.tokens};
  params.y = mutable_data<Element>(f.y);
  params.lse = mutable_data<Number>(f.image_lse);
}

template <class Traits, typename Params>
void set_text_params(const Forward& f, Params& params) {
  using Element = typename Traits::Element;
  using Number = NumberOf<Element>;
  params.shape = f.shape;
  params.work = {int64_t{f.shape.batch} * ceil_div(f.shape.heads * f.shape.text, Traits::kRows),
                 ImageStream<Traits, false>::items(f.shape), 1};
  params.dropout = Dropout<Number>::with(f.dropout_p, f.seed);
  params.image.rows = data<Element>(f.x);
  params.image.prompts = data_or_null<Element>(f.prompts);
  params.image.visible = data_or_null<bool>(f.image_mask);
  params.keys = data<Element>(f.keys);
  params.u = mutable_data<Element>(f.u);
  params.mass = mutable_data<Number>(f.mass);
  params.lse = mutable_data<Number>(f.text_lse);
}

namespace hopper {

// Each direction on a Hopper's tensor cores, where the device, the build and the sizes allow it; else false.
bool run_image_forward(const Forward& f, const LaunchScope& scope);
bool run_text_forward(const Forward& f, const LaunchScope& scope);

}  // namespace hopper
}  // namespace sdpt_ext::cuda
