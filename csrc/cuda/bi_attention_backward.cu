// Backward of bi_attention: the text's deltas first, then the gradients of the image side, which leave the image's
// deltas for those of the text side.
#include "../ops.h"
#include "bi_attention_backward.h"

namespace sdpt_ext::cuda {
namespace {

template <typename Element>
struct TextDeltaParams {
  const Element *grad_u, *u;
  const NumberOf<Element>*grad_mass, *mass;
  NumberOf<Element>* delta;
  int64_t rows;
  int width;
};

// delta = grad_u . u + grad_mass mass, a warp per text row.
template <typename Element>
__global__ void __launch_bounds__(kMergeThreads) text_delta(const __grid_constant__ TextDeltaParams<Element> p) {
  const int64_t row = int64_t{blockIdx.x} * kMergeRows + threadIdx.x / 32;
  if (row >= p.rows) {
    return;
  }
  NumberOf<Element> sum = 0;
  for (int column = 2 * lane(); column < p.width; column += 64) {
    const auto grad = load_pair(p.grad_u + row * p.width + column), value = load_pair(p.u + row * p.width + column);
    sum += grad.x * value.x + grad.y * value.y;
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  if (lane() == 0) {
    p.delta[row] = sum + p.grad_mass[row] * p.mass[row];
  }
}

template <typename Element>
void run_text_delta(const Backward& b, const LaunchScope& scope) {
  using Number = NumberOf<Element>;
  const int64_t rows = b.text_delta.numel();
  if (rows > 0) {
    const TextDeltaParams<Element> params{data<Element>(b.grad_u),    data<Element>(b.u), data<Number>(b.grad_mass),
                                          data<Number>(b.mass),        mutable_data<Number>(b.text_delta),
                                          rows,                       b.shape.width};
    const int64_t blocks = (rows + kMergeRows - 1) / kMergeRows;
    text_delta<Element><<<static_cast<unsigned>(blocks), kMergeThreads, 0, scope.stream()>>>(params);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

template <class Traits>
void run_image(const Backward& b, const LaunchScope& scope) {
  ImageBackwardParams<typename Traits::Element> params{};
  set_image_params<Traits>(b, params);
  launch<ImageBackward<Traits>, Traits>(scope, b.x, params, image_backward<Traits>, merge_image_backward<Traits>);
}

template <class Traits>
void run_text(const Backward& b, const LaunchScope& scope) {
  TextBackwardParams<typename Traits::Element> params{};
  set_text_params<Traits>(b, params);
  launch<TextBackward<Traits>, Traits>(scope, b.x, params, text_backward<Traits>, merge_text_backward<Traits>);
}

template <class Traits>
void run_smallest_text(const Backward& b, const LaunchScope& scope) {
  STD_TORCH_CHECK(fits<TextBackward<Traits>>(), "bi_attention_backward: a width of ", b.shape.width,
                  " in this dtype needs ", sizeof(typename TextBackward<Traits>::Memory),
                  " bytes of shared memory per block, and this device has ", shared_memory_limit());
  if constexpr (sizeof(typename TextBackward<Traits>::Memory) <= kMostSharedMemory) {
    run_text<Traits>(b, scope);
  }
}

// The largest chunk that a head needs and that fits, then fewer rows.
template <typename Element, int kWidth>
void choose_image(const Backward& b, const LaunchScope& scope) {
  constexpr int kRows = sizeof(Element) == 2 ? 64 : 32;
  using Large = ImageTraits<Element, kWidth, sizeof(Element) == 2 ? 288 : 256, kRows>;  // no registers for more
  using Medium = ImageTraits<Element, kWidth, 96, kRows>;
  using Small = ImageTraits<Element, kWidth, 32, 32>;
  if constexpr (sizeof(Element) == 8) {
    run_image<Small>(b, scope);
  } else if (b.shape.tokens > 96 && fits<ImageBackward<Large>>()) {
    run_image<Large>(b, scope);
  } else if (b.shape.tokens > 32 && fits<ImageBackward<Medium>>()) {
    run_image<Medium>(b, scope);
  } else {
    run_image<Small>(b, scope);
  }
}

template <typename Element, int kWidth>
void choose_text(const Backward& b, const LaunchScope& scope) {
  constexpr int kRows = sizeof(Element) == 2 ? 64 : 32;
  using Large = TextTraits<Element, kWidth, kRows, 32, 2>;
  using Medium = TextTraits<Element, kWidth, kRows, 32, 1>;
  using Small = TextTraits<Element, kWidth, 32, 32, 1>;
  if constexpr (sizeof(Element) == 8) {
    run_smallest_text<Small>(b, scope);
  } else if constexpr (kWidth <= 64) {  // fits everywhere
    run_text<Large>(b, scope);
  } else if (fits<TextBackward<Large>>()) {
    run_text<Large>(b, scope);
  } else if (fits<TextBackward<Medium>>()) {
    run_text<Medium>(b, scope);
  } else {
    run_smallest_text<Small>(b, scope);
  }
}

}  // namespace

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
                                                                         int64_t seed,
                                                                         bool tf32) {
  const BiAttentionShape shape =
      check_bi_attention(x, keys, key_bias, values, prompts, image_mask, num_text, dropout_p);
  check_bi_attention_saved(shape, x, key_bias, grad_y, grad_u, grad_mass, u, mass, image_lse, text_lse);
  const LaunchScope scope(x);
  Backward b{sizes_of(shape),    dropout_p, seed,
             padded(grad_y),     padded(grad_u),
             aligned(grad_mass), padded(x),
             padded(keys),       aligned(key_bias),
             padded(values),     padded(prompts),
             aligned(image_mask), padded(u),
             aligned(mass),      aligned(image_lse),
             aligned(text_lse)};
  b.image_delta = empty_numbers(x, {shape.batch, shape.heads, shape.positions});
  b.text_delta = empty_numbers(x, {shape.batch, shape.heads, shape.text});
  b.grad_x = zeros(b.x, {shape.batch, shape.positions, b.shape.width});
  b.grad_keys = empty(b.x, {shape.batch, shape.heads, shape.tokens, b.shape.width});
  b.grad_values = empty(b.x, {shape.batch, shape.heads, shape.tokens, b.shape.width});
  b.grad_bias = empty_numbers(x, {shape.batch, shape.heads, shape.tokens});
  b.prompt_sums = empty_numbers(x, {shape.batch, shape.prompts, b.shape.width});
  if (shape.tokens > 0) {
    dispatch_element(x, tf32, [&](auto element) {
      run_text_delta<decltype(element)>(b, scope);
      dispatch_width(b.shape.width, [&](auto width) {
        if (!hopper::run_image_backward(b, scope)) {
          choose_image<decltype(element), width()>(b, scope);
        }
        if (!hopper::run_text_backward(b, scope)) {
          choose_text<decltype(element), width()>(b, scope);
        }
      });
    });
  } else {
    torch::stable::zero_(b.prompt_sums);
  }
  const Tensor grad_prompts = torch::stable::to(sum_first(b.prompt_sums), x.scalar_type());
  const auto cut = [&](const Tensor& rows) { return unpadded(rows, shape.width); };
  return {cut(b.grad_x), cut(b.grad_keys), b.grad_bias, cut(b.grad_values), cut(grad_prompts)};
}

}  // namespace sdpt_ext::cuda
