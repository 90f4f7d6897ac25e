#include "../ops.h"
#include "columns.h"
#include "dispatch.h"
#include "matmul.h"

namespace sdpt_ext::cpu {
namespace {

template <typename T>
struct Forward {
  const DeformShape& shape;
  const T* image;   // (batch, height, width, channels)
  const T* offset;  // (batch, offset_numel)
  const T* mask;    // (batch, mask_numel) or null
  const T* weight;  // (out_channels, taps, channels)
  const T* bias;    // (out_channels) or null
  T* output;        // (batch, out_channels, positions)

  void run() const {
    const int64_t blocks = block_count<T>(shape, shape.channels);
    torch::stable::parallel_for(0, shape.batch * blocks, 1, [&](int64_t begin, int64_t end) {
      const int64_t longest = (shape.positions() + blocks - 1) / blocks;
      const auto columns = scratch<T>(longest * shape.taps() * shape.channels);
      for (int64_t task = begin; task < end; ++task) {
        run_block(task / blocks, share(shape.positions(), blocks, task % blocks), columns.get());
      }
    });
  }

  void run_block(int64_t sample, Range block, T* columns) const {
    const T* sample_mask = mask ? mask + sample * shape.mask_numel : nullptr;
    const SampleGrid<T> grid(shape, offset + sample * shape.offset_numel, sample_mask);
    const NeighbourRows<T> neighbours(
        image + sample * shape.height * shape.width * shape.channels, shape.channels, {0, shape.channels});
    fill_columns(columns, shape, grid, neighbours, block, shape.channels);

    const int64_t depth = shape.taps() * shape.channels;
    T* out = output + sample * shape.out_channels * shape.positions() + block.begin;
    for (int64_t channel = 0; channel < shape.out_channels; ++channel) {
      std::fill_n(out + channel * shape.positions(), block.size(), bias ? bias[channel] : T(0));
    }
    matmul<T>({out, shape.out_channels, block.size(), shape.positions(), 1},
              row_major(weight, shape.out_channels, depth),
              row_major<const T>(columns, block.size(), depth).transposed(),
              Store::kAccumulate);
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
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == shape.out_channels &&
                            bias->scalar_type() == input.scalar_type()),
                  "deform_conv2d: bias must have shape (", shape.out_channels, ") and the dtype of input");
  const std::vector<int64_t> sizes{shape.batch, shape.out_channels, shape.out_h, shape.out_w};
  Tensor output = torch::stable::new_empty(input, {sizes.data(), sizes.size()});
  if (shape.empty()) {
    return output;
  }
  const Tensor image = channels_last(input), filters = channels_last(weight);
  const Tensor shifts = torch::stable::contiguous(offset);
  const std::optional<Tensor> modulation = mask ? std::optional(torch::stable::contiguous(*mask)) : std::nullopt;
  const std::optional<Tensor> added = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
  dispatch_floating(input, "deform_conv2d", [&](auto zero) {
    using T = decltype(zero);
    Forward<T>{shape,
               image.const_data_ptr<T>(),
               shifts.const_data_ptr<T>(),
               modulation ? modulation->const_data_ptr<T>() : nullptr,
               filters.const_data_ptr<T>(),
               added ? added->const_data_ptr<T>() : nullptr,
               output.mutable_data_ptr<T>()}
        .run();
  });
  return output;
}

}  // namespace sdpt_ext::cpu
