// Backward of bi_attention on compute capability 9.0, for 16-bit elements.
#include "bi_attention_backward.h"
#include "hopper/image_backward.cuh"
#include "hopper/launch.h"
#include "hopper/tensor_map.h"
#include "hopper/text_backward.cuh"

namespace sdpt_ext::cuda::hopper {
namespace {

template <class Traits>
bool run_image(const Backward& b, const LaunchScope& scope) {
  using Element = typename Traits::Element;
  if (!runs<ImageBackward<Traits>>(image_backward<Traits>)) {
    return false;
  }
  const Sizes& s = b.shape;
  ImageBackwardParams<Element> params{};
  set_image_params<Traits>(b, params);
  const auto map_of = [&](const Tensor& rows, int tokens) {
    return head_map(data<Element>(rows), s, tokens, Traits::kHeads, Traits::kTokens);
  };
  params.x_map = tensor_map(params.x, s.batch, s.image, s.width, kGroupRows);
  params.prompts_map =
      s.prompts == 0 ? params.x_map : tensor_map(params.prompts, 1, s.prompts, s.width, kGroupRows);
  params.grad_y_map = tensor_map(params.grad_y, s.batch, s.image, s.width, kGroupRows);
  params.grad_x_map = tensor_map(params.grad_x, s.batch, s.image, s.width, kGroupRows);
  params.keys_map = map_of(b.keys, s.tokens);
  params.values_map = map_of(b.values, s.tokens);
  params.grad_u_map = map_of(b.grad_u, s.text);
  launch<ImageBackward<Traits>, Traits>(scope, b.x, params, image_backward<Traits>, merge_image_backward<Traits>);
  return true;
}

template <typename Element>
bool choose_image(const Backward& b, const LaunchScope& scope) {
  const int tokens = b.shape.tokens;
  if (tokens <= 24 && b.shape.heads > 1) {
    return tokens <= 20 ? run_image<ImageGradTraits<Element, 2, 24, 40, 4>>(b, scope)
                        : run_image<ImageGradTraits<Element, 2, 24, 48, 4>>(b, scope);
  }
  return tokens <= 32 ? run_image<ImageGradTraits<Element, 1, 32, 32, 6>>(b, scope)
                      : run_image<ImageGradTraits<Element, 1, 48, 48, 4>>(b, scope);
}

template <typename Element>
bool run_text(const Backward& b, const LaunchScope& scope) {
  using Traits = TextGradTraits<Element>;
  const Sizes& s = b.shape;
  if (Traits::heads_of_tile(s.heads, s.tokens) > Traits::kHeads || !runs<TextBackward<Traits>>(text_backward<Traits>)) {
    return false;
  }
  TextBackwardParams<Element> params{};
  set_text_params<Traits>(b, params);
  const int64_t rows = int64_t{s.heads} * s.tokens;
  params.image_map = tensor_map(params.image.rows, s.batch, s.image, s.width, Traits::kColumns);
  params.grads_map = tensor_map(params.image.grads, s.batch, s.image, s.width, Traits::kColumns);
  params.prompts_map = s.prompts == 0
                           ? params.image_map
                           : tensor_map(params.image.prompts, 1, s.prompts, s.width, Traits::kColumns);
  params.grad_keys_map = tensor_map(params.grad_keys, s.batch, rows, s.width, kGroupRows);
  params.grad_values_map = tensor_map(params.grad_values, s.batch, rows, s.width, kGroupRows);
  launch<TextBackward<Traits>, Traits>(scope, b.x, params, text_backward<Traits>, merge_text_backward<Traits>);
  return true;
}

}  // namespace

bool run_image_backward(const Backward& b, const LaunchScope& scope) {
  return b.shape.text > 0 &&
         dispatch(b.shape, b.x, [&](auto element) { return choose_image<decltype(element)>(b, scope); });
}

bool run_text_backward(const Backward& b, const LaunchScope& scope) {
  return b.shape.text > 0 &&
         dispatch(b.shape, b.x, [&](auto element) { return run_text<decltype(element)>(b, scope); });
}

}  // namespace sdpt_ext::cuda::hopper
