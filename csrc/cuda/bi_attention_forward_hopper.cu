// Forward of bi_attention on compute capability 9.0, for 16-bit elements.
#include "bi_attention_forward.h"
#include "hopper/image_forward.cuh"
#include "hopper/launch.h"
#include "hopper/tensor_map.h"
#include "hopper/text_forward.cuh"

namespace sdpt_ext::cuda::hopper {
namespace {

template <class Traits>
bool run_image(const Forward& f, const LaunchScope& scope) {
  using Element = typename Traits::Element;
  if (!runs<ImageForward<Traits>>(image_forward<Traits>)) {
    return false;
  }
  const Sizes& s = f.shape;
  ImageForwardParams<Element> params{};
  set_image_params<Traits>(f, params);
  params.x_map = tensor_map(params.x, s.batch, s.image, s.width, kGroupRows);
  params.y_map = tensor_map(params.y, s.batch, s.image, s.width, kGroupRows);
  params.keys_map = head_map(data<Element>(f.keys), s, s.tokens, Traits::kHeads, Traits::kTokens);
  params.values_map = head_map(data<Element>(f.values), s, s.tokens, Traits::kHeads, Traits::kTokens);
  launch<ImageForward<Traits>, Traits>(scope, f.x, params, image_forward<Traits>, merge_image_forward<Traits>);
  return true;
}

// At most kHeads heads with at most 32 tokens each.
template <typename Element, int kHeads>
bool run_short_image(const Forward& f, const LaunchScope& scope) {
  return f.shape.tokens <= 20 ? run_image<ImageTraits<Element, kHeads, 20, 1>>(f, scope)
                              : run_image<ImageTraits<Element, kHeads, 128 / kHeads, kHeads / 4>>(f, scope);
}

template <typename Element>
bool choose_image(const Forward& f, const LaunchScope& scope) {
  const int tokens = f.shape.tokens;
  if (tokens <= 32 && f.shape.heads <= 8) {
    return f.shape.heads <= 4 ? run_short_image<Element, 4>(f, scope) : run_short_image<Element, 8>(f, scope);
  }
  if (tokens <= 144) {
    return run_image<ImageTraits<Element, 1, 48, 3>>(f, scope);
  }
  return tokens <= 288 && run_image<ImageTraits<Element, 1, 48, 6>>(f, scope);  // no registers for more
}

template <typename Element>
bool run_text(const Forward& f, const LaunchScope& scope) {
  using Traits = TextTraits<Element>;
  if (!runs<TextForward<Traits>>(text_forward<Traits>)) {
    return false;
  }
  const Sizes& s = f.shape;
  TextForwardParams<Element> params{};
  set_text_params<Traits>(f, params);
  params.image_map = tensor_map(params.image.rows, s.batch, s.image, s.width, Traits::kColumns);
  params.prompts_map = s.prompts == 0
                           ? params.image_map
                           : tensor_map(params.image.prompts, 1, s.prompts, s.width, Traits::kColumns);
  params.u_map = tensor_map(params.u, s.batch, int64_t{s.heads} * s.text, s.width, kGroupRows);
  launch<TextForward<Traits>, Traits>(scope, f.x, params, text_forward<Traits>, merge_text_forward<Traits>);
  return true;
}

}  // namespace

bool run_image_forward(const Forward& f, const LaunchScope& scope) {
  return dispatch(f.shape, f.x, [&](auto element) { return choose_image<decltype(element)>(f, scope); });
}

bool run_text_forward(const Forward& f, const LaunchScope& scope) {
  return f.shape.text > 0 && dispatch(f.shape, f.x, [&](auto element) { return run_text<decltype(element)>(f, scope); });
}

}  // namespace sdpt_ext::cuda::hopper
