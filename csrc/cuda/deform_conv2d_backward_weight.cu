// The gradient of the filters: sampled columns times the gradient of the output, summed over positions. Blocks share
// the positions out; their sums are added in a fixed order afterwards.
#include "../ops.h"
#include "deform_product.cuh"
#include "deform_sample.cuh"
#include "deform_tensors.h"
#include "dispatch.h"
#include "launch.h"

namespace sdpt_ext::cuda {
namespace {

template <typename Element>
struct BackwardWeight {
  Geometry geometry;
  const Element* grad_output;  // (batch, plane, grad_stride)
  const Element* image;        // (batch, pixels, image_stride)
  Fields<Element> fields;
  NumberOf<Element>* partial;  // (splits, out_channels, taps, channels)
  int grad_stride, image_stride;
  int channel_tiles;
  int sample_steps;  // steps of kStepDepth positions that cover one sample
  int64_t steps;     // of the whole batch
};

// Steps [begin, end) of one of `parts` nearly equal shares.
__device__ inline int64_t share_begin(int64_t steps, int parts, int index) { return steps * index / parts; }

// blockIdx.x: share of the positions; blockIdx.y: tap and tile of kRows input channels; blockIdx.z: tile of kColumns
// output channels.
template <typename Element, int kColumns, int kRows>
__global__ void __launch_bounds__(kThreadsOf<kRows>, kResident<kRows>)
    backward_weight(const BackwardWeight<Element> arguments) {
  constexpr int kDepth = kStepDepth<Element>;
  using Columns = Tile<Element, kRows>;
  using Gradients = Tile<Element, kColumns>;
  __shared__ alignas(16) Element columns_memory[2][kDepth * kRows], gradients_memory[2][kDepth * kColumns];
  const Geometry& geometry = arguments.geometry;
  const int tap = blockIdx.y / arguments.channel_tiles;
  const int first_channel = blockIdx.y % arguments.channel_tiles * kRows;
  const int first_out_channel = blockIdx.z * kColumns;

  const int row = threadIdx.x / Columns::kRowChunks, chunk = threadIdx.x % Columns::kRowChunks * Columns::kChunk;
  ColumnSampler<Element> sampler(arguments.image, geometry.width, arguments.image_stride);
  const auto start_reading = [&](int stage, int64_t step) {
    const int sample = static_cast<int>(step / arguments.sample_steps);
    const int position = static_cast<int>(step % arguments.sample_steps) * kDepth;
    const Rows<Element> gradient_rows{
        arguments.grad_output + (int64_t{sample} * geometry.plane + position) * arguments.grad_stride + first_out_channel,
        geometry.plane - position,
        arguments.grad_stride};
    load_tile<kDepth, kThreadsOf<kRows>>(
        Gradients{gradients_memory[stage]}, gradient_rows, arguments.grad_stride - first_out_channel);
    sampler.move_to(locate(geometry, arguments.fields, sample, position + row, tap));
    sampler.fetch(first_channel + chunk);
  };
  const auto finish_reading = [&](int stage) {
    sampler.interpolate(Columns{columns_memory[stage]}.chunk(row, chunk));
    ptx::cp_async_wait_all();
  };

  Accumulator<kColumns, NumberOf<Element>> sums;
  sums.clear();
  const int64_t begin = share_begin(arguments.steps, gridDim.x, blockIdx.x);
  const int64_t end = share_begin(arguments.steps, gridDim.x, blockIdx.x + 1);
  start_reading(0, begin);
  finish_reading(0);
  __syncthreads();
  int stage = 0;
  for (int64_t step = begin; step < end; ++step, stage ^= 1) {
    if (step + 1 < end) {
      start_reading(stage ^ 1, step + 1);
    }
    multiply_left_transposed<kDepth>(sums, Columns{columns_memory[stage]}, Gradients{gradients_memory[stage]});
    if (step + 1 < end) {
      finish_reading(stage ^ 1);
    }
    __syncthreads();
  }

  sums.for_each([&](NumberOf<Element>& sum, int i, int column) {
    const int channel = first_channel + row_of_thread(i), out_channel = first_out_channel + column;
    if (channel < geometry.channels && out_channel < geometry.out_channels) {
      const int64_t filter = (int64_t{blockIdx.x} * geometry.out_channels + out_channel) * geometry.taps + tap;
      arguments.partial[filter * geometry.channels + channel] = sum;
    }
  });
}

// What a launch looks like: one full wave of blocks where there are positions enough.
struct Grid {
  bool large;  // tiles of 128 input and 256 output channels, not of 64
  int channel_tiles, out_tiles;
  int64_t sample_steps, steps, splits;

  Grid(const DeformShape& shape, int64_t element_size, int multiprocessors) {
    const int64_t depth = 64 / element_size;
    large = element_size == 2 && shape.out_channels > 64 && shape.channels > kTileRows;
    const int64_t rows = large ? kTallRows : kTileRows, columns = large ? 256 : 64;
    channel_tiles = static_cast<int>((shape.channels + rows - 1) / rows);
    out_tiles = static_cast<int>((shape.out_channels + columns - 1) / columns);
    sample_steps = (shape.positions() + depth - 1) / depth;
    steps = shape.batch * sample_steps;
    const int64_t tiles = shape.taps() * channel_tiles * out_tiles;
    const int64_t resident = large ? kResident<kTallRows> : kResident<kTileRows>;
    splits = std::max<int64_t>(1, std::min(steps, resident * multiprocessors / tiles));
  }
};

template <typename Element>
void launch(const BackwardWeight<Element>& arguments, const Grid& grid, cudaStream_t stream) {
  const dim3 blocks(grid.splits, arguments.geometry.taps * grid.channel_tiles, grid.out_tiles);
  const auto run = [&](auto kernel, int threads) {
    kernel<<<blocks, threads, 0, stream>>>(arguments);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if constexpr (sizeof(Element) == 2) {
    if (grid.large) {
      return run(backward_weight<Element, 256, kTallRows>, kThreadsOf<kTallRows>);
    }
  }
  run(backward_weight<Element, 64, kTileRows>, kThreadsOf<kTileRows>);
}

}  // namespace

Tensor deform_conv2d_backward_weight(const Tensor& grad_output,
                                     const Tensor& input,
                                     const Tensor& offset,
                                     const std::optional<Tensor>& mask,
                                     const Tensor& weight,
                                     const std::vector<int64_t>& stride,
                                     const std::vector<int64_t>& padding) {
  const DeformShape shape = check_deform_shape(input, offset, mask, weight, stride, padding);
  check_grad_output(grad_output, input, shape);
  const LaunchScope scope(input);
  if (shape.empty() || shape.channels == 0) {
    return torch::stable::new_zeros(weight, weight.sizes());
  }
  const Tensor image = channels_last_rows(input), gradient = channels_last_rows(grad_output);
  const Tensor shifts = torch::stable::contiguous(offset);
  const std::optional<Tensor> modulation = contiguous(mask);
  const Grid grid(shape, input.element_size(), scope.multiprocessors());
  const Tensor partial =
      empty_sums(weight, {grid.splits, shape.out_channels, shape.taps(), shape.channels});
  dispatch_floating(input, "deform_conv2d", [&](auto zero) {
    using Element = decltype(zero);
    launch(BackwardWeight<Element>{Geometry(shape),
                                   data<Element>(gradient),
                                   data<Element>(image),
                                   {data<Element>(shifts), data_or_null<Element>(modulation)},
                                   mutable_data<NumberOf<Element>>(partial),
                                   static_cast<int>(gradient.size(2)),
                                   static_cast<int>(image.size(2)),
                                   grid.channel_tiles,
                                   static_cast<int>(grid.sample_steps),
                                   grid.steps},
           grid,
           scope.stream());
  });
  const Tensor planes = torch::stable::contiguous(torch::stable::transpose(sum_first(partial), 1, 2));
  return torch::stable::reshape(torch::stable::to(planes, weight.scalar_type()), weight.sizes());
}

}  // namespace sdpt_ext::cuda
