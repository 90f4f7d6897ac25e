// The gradients of input, offset and mask. A block multiplies the output's gradient at 64 positions with the filters of
// one tap, which gives the gradient of the sampled columns, and hands that on: to the neighbours it was sampled from
// and, by dot products with them, to the offset and the mask.
//
// Every result is the same in every run: one warp owns an offset and adds in a fixed order, and the additions to the
// input's gradient, which come in any order, are made in integers.
#include "../ops.h"
#include "deform_product.cuh"
#include "deform_sample.cuh"
#include "deform_tensors.h"
#include "dispatch.h"
#include "fixed_point.cuh"
#include "launch.h"

namespace sdpt_ext::cuda {
namespace {

// Largest magnitudes, as bits, of what a column's gradient is a sum of products of.
struct Largest {
  FixedPoint grad_output, filter, mask;
};

template <typename Element>
struct BackwardData {
  Geometry geometry;
  const Element* grad_output;  // (batch, plane, grad_stride)
  const Element* filters;      // (taps, channels, grad_stride)
  const Element* image;        // (batch, pixels, image_stride)
  Fields<Element> fields;
  FixedPoint* grad_image;  // (batch, pixels, channels) or null
  const Largest* largest;
  Element* grad_offset;  // (batch, offset_numel) or null
  Element* grad_mask;    // (batch, mask_numel) or null
  int grad_stride, image_stride;
  int position_tiles;  // per sample

  // Of the sum of everything that one pixel can receive.
  __device__ double bound() const {
    const double mask = fields.mask ? __longlong_as_double(largest->mask) : 1;
    return __longlong_as_double(largest->grad_output) * __longlong_as_double(largest->filter) * mask *
           geometry.out_channels * geometry.taps * geometry.plane;
  }
};

template <typename Element>
constexpr int kColumnsOf = 512 / sizeof(NumberOf<Element>);
// The padding keeps the rows of a warp's pairs in different banks.
template <typename Element>
constexpr int kStagedRow = kColumnsOf<Element> + 8;

// (64, kColumnsOf) gradients of the sampled columns of one tap.
template <typename Element>
__device__ __forceinline__ Accumulator<kColumnsOf<Element>, NumberOf<Element>> column_gradients(
    const BackwardData<Element>& arguments, int sample, int first_position, int tap, int first_channel, void* memory) {
  constexpr int kDepth = kStepDepth<Element>, kColumns = kColumnsOf<Element>;
  constexpr int kStage = (kTileRows + kColumns) * kDepth;
  using Rows = Rows<Element>;
  using Operand = Tile<Element, kDepth>;
  const Geometry& geometry = arguments.geometry;
  const Rows gradients{
      arguments.grad_output + (int64_t{sample} * geometry.plane + first_position) * arguments.grad_stride,
      geometry.plane - first_position,
      arguments.grad_stride};
  const Rows filters{arguments.filters + (int64_t{tap} * geometry.channels + first_channel) * arguments.grad_stride,
                     geometry.channels - first_channel,
                     arguments.grad_stride};
  const auto gradient_tile = [&](int stage) { return Operand{static_cast<Element*>(memory) + stage * kStage}; };
  const auto filter_tile = [&](int stage) { return Operand{gradient_tile(stage).data + kTileRows * kDepth}; };
  const auto start_reading = [&](int stage, int depth) {
    const int width = arguments.grad_stride - depth;
    load_tile<kTileRows, kThreads>(
        gradient_tile(stage), Rows{gradients.base + depth, gradients.count, gradients.stride}, width);
    load_tile<kColumns, kThreads>(
        filter_tile(stage), Rows{filters.base + depth, filters.count, filters.stride}, width);
  };

  Accumulator<kColumns, NumberOf<Element>> sums;
  sums.clear();
  start_reading(0, 0);
  for (int depth = 0, stage = 0; depth < arguments.grad_stride; depth += kDepth, stage ^= 1) {
    ptx::cp_async_wait_all();
    __syncthreads();
    if (depth + kDepth < arguments.grad_stride) {
      start_reading(stage ^ 1, depth + kDepth);
    }
    multiply_transposed<kDepth>(sums, gradient_tile(stage), 0, filter_tile(stage));
  }
  __syncthreads();
  return sums;
}

// Gradients of the two offsets and the modulation of one sample.
template <typename Sum>
struct FieldGradients {
  Sum dy = 0, dx = 0, modulation = 0;
};

// One warp hands on the gradient of one sampled column, kColumns channels from first_channel on.
template <typename Element>
__device__ FieldGradients<NumberOf<Element>> spread(const BackwardData<Element>& arguments,
                                                 const FixedPointScale<NumberOf<Element>>& scale,
                                                 const Sample<NumberOf<Element>>& at,
                                                 int first_channel,
                                                 const NumberOf<Element>* column) {
  using Sum = NumberOf<Element>;
  const Geometry& geometry = arguments.geometry;
  FieldGradients<Sum> result;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (!at.is_inside(corner)) {
      continue;
    }
    const int64_t pixel = at.pixel(corner, geometry.width);
    const Sum share = at.modulation * at.weight(corner);
    Sum product = 0;
    for (int i = lane(); i < kColumnsOf<Element> && first_channel + i < geometry.channels; i += 32) {
      const int channel = first_channel + i;
      product += column[i] * static_cast<Sum>(arguments.image[pixel * arguments.image_stride + channel]);
      if (arguments.grad_image != nullptr) {
        scale.add(arguments.grad_image + pixel * geometry.channels + channel, column[i] * share);
      }
    }
    result.dy += at.weight_dy(corner) * product;
    result.dx += at.weight_dx(corner) * product;
    result.modulation += at.weight(corner) * product;
  }
  result.dy *= at.modulation, result.dx *= at.modulation;
  return result;
}

template <typename Sum>
__device__ Sum sum_over_warp(Sum value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// blockIdx.x: sample and tile of positions; blockIdx.y: tap.
template <typename Element>
__global__ void __launch_bounds__(kThreads, 2) backward_data(const BackwardData<Element> arguments) {
  using Sum = NumberOf<Element>;
  constexpr int kColumns = kColumnsOf<Element>, kWarpPositions = kTileRows / (kThreads / 32);
  __shared__ alignas(16) Sum memory[kTileRows * kStagedRow<Element>];
  const Geometry& geometry = arguments.geometry;
  const int sample = blockIdx.x / arguments.position_tiles, tap = blockIdx.y;
  const int first_position = blockIdx.x % arguments.position_tiles * kTileRows;
  const int first_row = threadIdx.x / 32 * kWarpPositions;
  const FixedPointScale<Sum> scale(arguments.grad_image ? arguments.bound() : 0);

  FieldGradients<Sum> totals;  // of position `lane` of the warp's
  for (int first_channel = 0; first_channel < geometry.channels; first_channel += kColumns) {
    auto sums = column_gradients(arguments, sample, first_position, tap, first_channel, memory);
    sums.for_each([&](Sum value, int i, int column) {
      memory[row_of_thread(i) * kStagedRow<Element> + column] = value;
    });
    __syncthreads();
    for (int i = 0; i < kWarpPositions; ++i) {
      const Sample<Sum> at = locate(geometry, arguments.fields, sample, first_position + first_row + i, tap);
      const Sum* column = memory + (first_row + i) * kStagedRow<Element>;
      const FieldGradients<Sum> found = spread(arguments, scale, at, first_channel, column);
      const Sum dy = sum_over_warp(found.dy), dx = sum_over_warp(found.dx);
      const Sum modulation = sum_over_warp(found.modulation);
      if (lane() == i) {
        totals.dy += dy, totals.dx += dx, totals.modulation += modulation;
      }
    }
    __syncthreads();
  }

  const int position = first_position + first_row + lane();
  if (lane() < kWarpPositions && position < geometry.plane && arguments.grad_offset != nullptr) {
    Element* grad_offset = arguments.grad_offset + sample * geometry.offset_numel + position;
    grad_offset[int64_t{2} * tap * geometry.plane] = static_cast<Element>(totals.dy);
    grad_offset[(int64_t{2} * tap + 1) * geometry.plane] = static_cast<Element>(totals.dx);
    if (arguments.grad_mask != nullptr) {
      const int64_t index = sample * geometry.mask_numel + int64_t{tap} * geometry.plane + position;
      arguments.grad_mask[index] = static_cast<Element>(totals.modulation);
    }
  }
}

// Reads the input's gradient out of its integers.
template <typename Element>
__global__ void __launch_bounds__(kThreads)
    to_floating(const BackwardData<Element> arguments, int64_t count, Element* grad_input) {
  const FixedPointScale<NumberOf<Element>> scale(arguments.bound());
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) {
    grad_input[i] = static_cast<Element>(scale.read(arguments.grad_image[i]));
  }
}

template <typename Element>
void raise_to_largest(const Tensor& values, FixedPoint* largest, const LaunchScope& scope) {
  const int64_t count = values.numel();
  const int64_t blocks = std::min<int64_t>((count + kThreads - 1) / kThreads, 2 * scope.multiprocessors());
  find_largest<<<blocks, kThreads, 0, scope.stream()>>>(data<Element>(values), count, largest);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename Element>
void launch(const BackwardData<Element>& arguments, int64_t batch, const LaunchScope& scope) {
  const dim3 grid(batch * arguments.position_tiles, arguments.geometry.taps);
  backward_data<<<grid, kThreads, 0, scope.stream()>>>(arguments);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// (out_channels, channels, kernel_h, kernel_w) -> (taps, channels, out_channels)
Tensor transposed_filters(const Tensor& weight) {
  return aligned_rows(torch::stable::transpose(torch::stable::flatten(weight, 2, 3), 0, 2));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> deform_conv2d_backward_data(const Tensor& grad_output,
                                                               const Tensor& input,
                                                               const Tensor& offset,
                                                               const std::optional<Tensor>& mask,
                                                               const Tensor& weight,
                                                               const std::vector<int64_t>& stride,
                                                               const std::vector<int64_t>& padding,
                                                               bool needs_input,
                                                               bool needs_offset_or_mask) {
  const DeformShape shape = check_deform_shape(input, offset, mask, weight, stride, padding);
  check_grad_output(grad_output, input, shape);
  const LaunchScope scope(input);
  const bool needs_mask = needs_offset_or_mask && mask;
  const auto zeros_like = [&](const Tensor& like) { return torch::stable::new_zeros(like, like.sizes()); };
  const auto none = [&] { return empty(input, {0}); };
  const Tensor grad_offset = needs_offset_or_mask ? zeros_like(offset) : none();
  const Tensor grad_mask = needs_mask ? zeros_like(*mask) : none();
  const std::vector<int64_t> image_size{shape.batch, shape.height, shape.width, shape.channels};
  if (shape.empty() || shape.channels == 0) {
    return {needs_input ? as_channels_last(zeros(input, image_size)) : none(), grad_offset, grad_mask};
  }
  const int64_t pixels = shape.height * shape.width;
  const Tensor gradient = channels_last_rows(grad_output), image = channels_last_rows(input);
  const Tensor filters = transposed_filters(weight), shifts = torch::stable::contiguous(offset);
  const std::optional<Tensor> modulation = contiguous(mask);
  const Tensor sums = zeros_of(input, {needs_input ? shape.batch : 0, pixels, shape.channels}, ScalarType::Long);
  const Tensor largest = zeros_of(input, {3}, ScalarType::Long);
  const Tensor grad_image = needs_input ? empty(input, image_size) : none();
  dispatch_floating(input, "deform_conv2d", [&](auto zero) {
    using Element = decltype(zero);
    auto* const magnitudes = mutable_data<Largest>(largest);
    const BackwardData<Element> arguments{
        Geometry(shape),
        data<Element>(gradient),
        data<Element>(filters),
        data<Element>(image),
        {data<Element>(shifts), data_or_null<Element>(modulation)},
        needs_input ? mutable_data<FixedPoint>(sums) : nullptr,
        magnitudes,
        needs_offset_or_mask ? mutable_data<Element>(grad_offset) : nullptr,
        needs_mask ? mutable_data<Element>(grad_mask) : nullptr,
        static_cast<int>(gradient.size(2)),
        static_cast<int>(image.size(2)),
        static_cast<int>((shape.positions() + kTileRows - 1) / kTileRows)};
    if (needs_input) {
      raise_to_largest<Element>(gradient, &magnitudes->grad_output, scope);
      raise_to_largest<Element>(filters, &magnitudes->filter, scope);
      if (modulation) {
        raise_to_largest<Element>(*modulation, &magnitudes->mask, scope);
      }
    }
    launch(arguments, shape.batch, scope);
    if (needs_input) {
      const int64_t count = grad_image.numel(), blocks = (count + kThreads - 1) / kThreads;
      to_floating<<<blocks, kThreads, 0, scope.stream()>>>(arguments, count, mutable_data<Element>(grad_image));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return {needs_input ? as_channels_last(grad_image) : none(), grad_offset, grad_mask};
}

}  // namespace sdpt_ext::cuda
