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
  T* output;                 // (batch, positions, out_channels)

  void run() const {
    const Blocks blocks(shape, shape.channels, sizeof(T), torch::stable::get_num_threads());
    torch::stable::parallel_for(0, shape.batch * blocks.count, 1, [&](int64_t begin, int64_t end) {
      const auto columns = scratch<T>(blocks.longest() * shape.taps() * shape.channels);
      for (int64_t task = begin; task < end; ++task) {
        run_block(task / blocks.count, blocks[task % blocks.count], columns.get());
      }
    });
  }

  void run_block(int64_t sample, Range block, T* columns) const {
    const SampleGrid<T> grid(shape, offset, mask, sample);
    const T* sample_image = image + sample * shape.height * shape.width * shape.channels;
    const NeighbourRows<T> neighbours(sample_image, shape.channels, {0, shape.channels});
    fill_columns(columns, grid, neighbours, block);

    const int64_t depth = shape.taps() * shape.channels;
    T* const rows = output + (sample * shape.positions() + block.begin) * shape.out_channels;
    if (bias) {
      for (int64_t position = 0; position < block.size(); ++position) {
        std::copy_n(bias, shape.out_channels, rows + position * shape.out_channels);
      }
    }
    panel_product<T>().multiply(rows,
                                shape.out_channels,
                                {columns, depth, 1},
                                filters.data(),
                                {block.size(), shape.out_channels, depth},
                                bias != nullptr);
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
  const Tensor output = empty(input, {shape.batch, shape.out_h(), shape.out_w(), shape.out_channels});
  if (shape.empty()) {
    return as_channels_last(output);
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
  return as_channels_last(output);
}

}  // namespace sdpt_ext::cpu
