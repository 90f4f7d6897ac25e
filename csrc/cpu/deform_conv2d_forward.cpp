#include <algorithm>

#include "../deform_check.h"
#include "../ops.h"
#include "columns.h"
#include "dispatch.h"
#include "memory.h"
#include "operands.h"

namespace sdpt_ext::cpu {
namespace {

template <typename T>
struct Forward {
  const DeformShape& shape;
  const T* image;            // (batch, height, width, channels)
  const T* offset;           // (batch, offset_numel)
  const T* mask;             // (batch, mask_numel) or null
  const Panels<T>& filters;  // (taps x channels, out_channels)
  const T* bias;             // (out_channels) or null
  T* output;                 // (batch, out_channels, positions)

  void run() const {
    const Blocks blocks(shape, shape.channels, sizeof(T), torch::stable::get_num_threads());
    torch::stable::parallel_for(0, shape.batch * blocks.count, 1, [&](int64_t begin, int64_t end) {
      const auto columns = scratch<T>(blocks.longest() * shape.taps() * shape.channels);
      const auto products = scratch<T>(blocks.longest() * shape.out_channels);
      for (int64_t task = begin; task < end; ++task) {
        run_block(task / blocks.count, blocks[task % blocks.count], columns.get(), products.get());
      }
    });
  }

  void run_block(int64_t sample, Range block, T* columns, T* products) const {
    const SampleGrid<T> grid(shape, offset, mask, sample);
    const T* sample_image = image + sample * shape.height * shape.width * shape.channels;
    const NeighbourRows<T> neighbours(sample_image, shape.channels, {0, shape.channels});
    fill_columns(columns, grid, neighbours, block);

    const int64_t plane = shape.positions(), depth = shape.taps() * shape.channels;
    panel_product<T>().multiply(products,
                                shape.out_channels,
                                {columns, depth, 1},
                                filters.data(),
                                {block.size(), shape.out_channels, depth},
                                false);
    T* out = output + sample * shape.out_channels * plane + block.begin;
    for (int64_t channel = 0; channel < shape.out_channels; ++channel) {
      const T added = bias ? bias[channel] : T(0);
      for (int64_t position = 0; position < block.size(); ++position) {
        out[channel * plane + position] = products[position * shape.out_channels + channel] + added;
      }
    }
  }
};

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
  const Tensor output = empty(input, {shape.batch, shape.out_channels, shape.out_h(), shape.out_w()});
  if (shape.empty()) {
    return output;
  }
  const Tensor image = channels_last(input), filters = channels_last(weight);
  const Tensor shifts = torch::stable::contiguous(offset);
  const std::optional<Tensor> modulation = contiguous(mask), added = contiguous(bias);
  dispatch_floating(input, "deform_conv2d", [&](auto zero) {
    using T = decltype(zero);
    const int64_t depth = shape.taps() * shape.channels;
    Panels<T> panels(depth, shape.out_channels);
    panels.pack(Strided<T>{filters.const_data_ptr<T>(), 1, depth}, depth, shape.out_channels);
    Forward<T>{shape,
               image.const_data_ptr<T>(),
               shifts.const_data_ptr<T>(),
               data_or_null<T>(modulation),
               panels,
               data_or_null<T>(added),
               output.mutable_data_ptr<T>()}
        .run();
  });
  return output;
}

}  // namespace sdpt_ext::cpu
