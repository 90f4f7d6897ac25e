// Forward of bi_attention: one launch per direction, and a second small one each where blocks shared a tile.
#include "../ops.h"
#include "bi_attention_forward.h"

namespace sdpt_ext::cuda {
namespace {

template <class Traits>
void run_image(const Forward& f, const LaunchScope& scope) {
  ImageForwardParams<typename Traits::Element> params{};
  set_image_params<Traits>(f, params);
  launch<ImageForward<Traits>, Traits>(scope, f.x, params, image_forward<Traits>, merge_image_forward<Traits>);
}

template <class Traits>
void run_text(const Forward& f, const LaunchScope& scope) {
  TextForwardParams<typename Traits::Element> params{};
  set_text_params<Traits>(f, params);
  launch<TextForward<Traits>, Traits>(scope, f.x, params, text_forward<Traits>, merge_text_forward<Traits>);
}

// The largest chunk that a head needs and that fits; without any that fits, the smallest.
template <typename Element, int kWidth>
void choose_image(const Forward& f, const LaunchScope& scope) {
  constexpr int kRows = sizeof(Element) == 2 ? 64 : 32;
  using Small = ImageTraits<Element, kWidth, 32, kRows>;
  using Medium = ImageTraits<Element, kWidth, 96, kRows>;
  using Large = ImageTraits<Element, kWidth, sizeof(Element) == 2 ? 288 : 256, kRows>;  // no registers for more
  if constexpr (sizeof(Element) == 8) {
    run_image<Small>(f, scope);
  } else if (f.shape.tokens > 96 && fits<ImageForward<Large>>()) {
    run_image<Large>(f, scope);
  } else if (f.shape.tokens > 32 && fits<ImageForward<Medium>>()) {
    run_image<Medium>(f, scope);
  } else {
    run_image<Small>(f, scope);
  }
}

template <typename Element, int kWidth>
void choose_text(const Forward& f, const LaunchScope& scope) {
  constexpr int kRows = sizeof(Element) == 2 ? 64 : 32, kColumns = kRows;
  using Large = TextTraits<Element, kWidth, kRows, kColumns, 2>;
  using Small = TextTraits<Element, kWidth, kRows, 32, 1>;
  if constexpr (sizeof(Element) == 8) {
    run_text<Small>(f, scope);
  } else if constexpr (kWidth <= 64) {  // fits everywhere
    run_text<Large>(f, scope);
  } else if (fits<TextForward<Large>>()) {
    run_text<Large>(f, scope);
  } else {
    run_text<Small>(f, scope);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bi_attention(const Tensor& x,
                                                                const Tensor& keys,
                                                                const Tensor& key_bias,
                                                                const Tensor& values,
                                                                const std::optional<Tensor>& prompts,
                                                                const std::optional<Tensor>& image_mask,
                                                                int64_t num_text,
                                                                double dropout_p,
                                                                int64_t seed,
                                                                bool tf32) {
  const BiAttentionShape shape =
      check_bi_attention(x, keys, key_bias, values, prompts, image_mask, num_text, dropout_p);
  const LaunchScope scope(x);
  Forward f{sizes_of(shape), dropout_p, seed, padded(x), padded(keys), aligned(key_bias),
            padded(values), padded(prompts), aligned(image_mask)};
  f.y = zeros(f.x, {shape.batch, shape.positions, f.shape.width});
  f.u = empty(f.x, {shape.batch, shape.heads, shape.text, f.shape.width});
  f.mass = empty_numbers(x, {shape.batch, shape.heads, shape.text});
  f.image_lse = empty_numbers(x, {shape.batch, shape.heads, shape.positions});
  f.text_lse = empty_numbers(x, {shape.batch, shape.heads, shape.text});
  if (shape.tokens > 0) {
    dispatch_element(x, tf32, [&](auto element) {
      dispatch_width(f.shape.width, [&](auto width) {
        if (!hopper::run_image_forward(f, scope)) {
          choose_image<decltype(element), width()>(f, scope);
        }
        if (!hopper::run_text_forward(f, scope)) {
          choose_text<decltype(element), width()>(f, scope);
        }
      });
    });
  } else {
    torch::stable::fill_(f.image_lse, kInfinity);
  }
  return {unpadded(f.y, shape.width), unpadded(f.u, shape.width), f.mass, f.image_lse, f.text_lse};
}

}  // namespace sdpt_ext::cuda
