// Implicit GEMM: a block samples the columns of its output positions step by step and multiplies them with the filters.
#include "../ops.h"
#include "deform_product.cuh"
#include "deform_sample.cuh"
#include "deform_tensors.h"
#include "dispatch.h"
#include "launch.h"
#include "pair.cuh"

namespace sdpt_ext::cuda {
namespace {

template <typename Element>
struct Forward {
  Geometry geometry;
  const Element* image;    // (batch, pixels, stride)
  Fields<Element> fields;
  const Element* filters;  // (out_channels, taps, stride)
  const Element* bias;     // (out_channels) or null
  Element* output;         // (batch, plane, out_channels)
  int stride;              // channels with their padding
  int position_tiles;      // per sample, set at launch
};

template <typename Element, typename Sum, int kColumns>
__device__ __forceinline__ void store(const Forward<Element>& arguments,
                                      const Accumulator<kColumns, Sum>& sums,
                                      int sample,
                                      int first_position,
                                      int first_channel) {
  const Geometry& geometry = arguments.geometry;
  const int channels = geometry.out_channels;
  const auto bias = [&](int channel) {
    return arguments.bias && channel < channels ? static_cast<Sum>(arguments.bias[channel]) : Sum(0);
  };
#pragma unroll
  for (int j = 0; j < sums.kBlocks; ++j) {
    const int channel = first_channel + sums.column(j);
    const Sum first = bias(channel), second = bias(channel + 1);
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const int position = first_position + row_of_thread(i);
      if (position < geometry.plane && channel < channels) {
        Element* target = arguments.output + (int64_t{sample} * geometry.plane + position) * channels + channel;
        if (channels % 2 == 0) {
          store_pair(target, sums(i, j, 0) + first, sums(i, j, 1) + second);
        } else {
          target[0] = static_cast<Element>(sums(i, j, 0) + first);
          if (channel + 1 < channels) {
            target[1] = static_cast<Element>(sums(i, j, 1) + second);
          }
        }
      }
    }
  }
}

// blockIdx.x: sample and tile of kRows positions; blockIdx.y: tile of kColumns output channels.
template <typename Element, int kColumns, int kRows>
__global__ void __launch_bounds__(kThreadsOf<kRows>, kResident<kRows>) forward(const Forward<Element> arguments) {
  constexpr int kDepth = kStepDepth<Element>;
  using Columns = Tile<Element, kDepth>;
  __shared__ alignas(16) Element columns_memory[2][kRows * kDepth], filters_memory[2][kColumns * kDepth];
  const Geometry& geometry = arguments.geometry;
  const int sample = blockIdx.x / arguments.position_tiles;
  const int first_position = blockIdx.x % arguments.position_tiles * kRows;
  const int first_channel = blockIdx.y * kColumns;

  const int row = threadIdx.x / Columns::kRowChunks, chunk = threadIdx.x % Columns::kRowChunks * Columns::kChunk;
  ColumnSampler<Element> sampler(arguments.image, geometry.width, arguments.stride);
  // Starts everything that the step at this tap and these input channels reads.
  const auto start_reading = [&](int stage, int tap, int channel) {
    if (channel == 0) {
      sampler.move_to(locate(geometry, arguments.fields, sample, first_position + row, tap));
    }
    const int64_t first_filter = int64_t{first_channel} * geometry.taps + tap;
    const Rows<Element> filter_rows{arguments.filters + first_filter * arguments.stride + channel,
                                    geometry.out_channels - first_channel,
                                    geometry.taps * arguments.stride};
    load_tile<kColumns, kThreadsOf<kRows>>(Columns{filters_memory[stage]}, filter_rows, arguments.stride - channel);
    sampler.fetch(channel + chunk);
  };
  const auto finish_reading = [&](int stage) {
    sampler.interpolate(Columns{columns_memory[stage]}.chunk(row, chunk));
    ptx::cp_async_wait_all();
  };

  Accumulator<kColumns, NumberOf<Element>> sums;
  sums.clear();
  start_reading(0, 0, 0);
  finish_reading(0);
  __syncthreads();
  for (int tap = 0, channel = 0, stage = 0; tap < geometry.taps; stage ^= 1) {
    channel += kDepth;
    if (channel >= arguments.stride) {
      channel = 0, ++tap;
    }
    if (tap < geometry.taps) {
      start_reading(stage ^ 1, tap, channel);
    }
    multiply_transposed<kDepth>(sums, Columns{columns_memory[stage]}, 0, Columns{filters_memory[stage]});
    if (tap < geometry.taps) {
      finish_reading(stage ^ 1);
    }
    __syncthreads();
  }

  store(arguments, sums, sample, first_position, first_channel);
}

template <typename Element, int kColumns, int kRows>
void launch(Forward<Element> arguments, int64_t batch, const LaunchScope& scope) {
  const Geometry& geometry = arguments.geometry;
  arguments.position_tiles = (geometry.plane + kRows - 1) / kRows;
  const dim3 grid(batch * arguments.position_tiles, (geometry.out_channels + kColumns - 1) / kColumns);
  forward<Element, kColumns, kRows><<<grid, kThreadsOf<kRows>, 0, scope.stream()>>>(arguments);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Large tiles read the least: every column once, the filters once per tile of positions. Smaller ones keep more
// multiprocessors busy where there are few positions, and do where the product itself takes long.
template <typename Element>
void launch_best(const Forward<Element>& arguments, int64_t batch, const LaunchScope& scope) {
  if constexpr (sizeof(Element) == 2) {
    const int64_t tiles = batch * ((arguments.geometry.plane + kTileRows - 1) / kTileRows);
    if (arguments.geometry.out_channels > 64 && tiles > scope.multiprocessors()) {
      return launch<Element, 256, kTallRows>(arguments, batch, scope);
    }
    if (arguments.geometry.out_channels > 64 && tiles > scope.multiprocessors() / 2) {
      return launch<Element, 256, kTileRows>(arguments, batch, scope);
    }
  }
  launch<Element, 64, kTileRows>(arguments, batch, scope);
}

}  // namespace

Tensor deform_conv2d(const Tensor& input,
                     const Tensor& offset,
                     const std::optional<Tensor>& mask,
                     const Tensor& weight,
                     const std::optional<Tensor>& bias,
                     const std::vector<int64_t>& stride,
                     const std::vector<int64_t>& padding) {
  const DeformShape shape = check_deform_shape(input, offset, mask, weight, stride, padding);
  check_bias(bias, input, shape);
  const LaunchScope scope(input);
  const Tensor output = empty(input, {shape.batch, shape.out_h(), shape.out_w(), shape.out_channels});
  if (shape.empty()) {
    return as_channels_last(output);
  }
  const Tensor image = channels_last_rows(input), filters = channels_last_rows(weight);
  const Tensor shifts = torch::stable::contiguous(offset);
  const std::optional<Tensor> modulation = contiguous(mask), added = contiguous(bias);
  dispatch_floating(input, "deform_conv2d", [&](auto zero) {
    using Element = decltype(zero);
    launch_best(Forward<Element>{Geometry(shape),
                                 data<Element>(image),
                                 {data<Element>(shifts), data_or_null<Element>(modulation)},
                                 data<Element>(filters),
                                 data_or_null<Element>(added),
                                 mutable_data<Element>(output),
                                 static_cast<int>(image.size(2)),
                                 0},
                shape.batch,
                scope);
  });
  return as_channels_last(output);
}

}  // namespace sdpt_ext::cuda
