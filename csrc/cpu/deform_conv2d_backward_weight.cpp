#include "../ops.h"
#include "columns.h"
#include "dispatch.h"
#include "matmul.h"
#include "slices.h"

namespace sdpt_ext::cpu {
namespace {

template <typename T>
struct BackwardWeight {
  const DeformShape& shape;
  const Slices& slices;
  const T* grad_output;  // (batch, out_channels, positions)
  const T* image;        // (batch, height, width, channels)
  const T* offset;       // (batch, offset_numel)
  const T* mask;         // (batch, mask_numel) or null
  T* grad_weight;        // (sample groups, out_channels, taps, channels)

  void run() const {
    torch::stable::parallel_for(0, slices.tasks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        run_task(task / slices.channel_slices, share(shape.channels, slices.channel_slices, task % slices.channel_slices));
      }
    });
  }

  void run_task(int64_t group, Range slice) const {
    const Range samples = share(shape.batch, slices.groups, group);
    const int64_t depth = shape.taps() * slice.size();
    const auto sums = scratch<T>(shape.out_channels * depth);
    std::fill_n(sums.get(), shape.out_channels * depth, T(0));
    const int64_t blocks = block_count<T>(shape, slice.size());
    const auto columns = scratch<T>(((shape.positions() + blocks - 1) / blocks) * depth);
    for (int64_t sample = samples.begin; sample < samples.end; ++sample) {
      for (int64_t index = 0; index < blocks; ++index) {
        add_block(sample, slice, share(shape.positions(), blocks, index), columns.get(), sums.get());
      }
    }
    T* out = grad_weight + group * shape.out_channels * shape.taps() * shape.channels + slice.begin;
    for (int64_t row = 0; row < shape.out_channels * shape.taps(); ++row) {
      std::copy_n(sums.get() + row * slice.size(), slice.size(), out + row * shape.channels);
    }
  }

  void add_block(int64_t sample, Range slice, Range block, T* columns, T* sums) const {
    const SampleGrid<T> grid(
        shape, offset + sample * shape.offset_numel, mask ? mask + sample * shape.mask_numel : nullptr);
    const NeighbourRows<T> neighbours(
        image + sample * shape.height * shape.width * shape.channels, shape.channels, slice);
    fill_columns(columns, shape, grid, neighbours, block, slice.size());
    const T* grad = grad_output + sample * shape.out_channels * shape.positions() + block.begin;
    const int64_t depth = shape.taps() * slice.size();
    matmul<T>(row_major(sums, shape.out_channels, depth),
              {grad, shape.out_channels, block.size(), shape.positions(), 1},
              row_major<const T>(columns, block.size(), depth),
              Store::kAccumulate);
  }
};

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
  if (shape.empty() || weight.numel() == 0) {
    return torch::stable::new_zeros(weight, weight.sizes());
  }
  const Slices slices(shape);
  const std::vector<int64_t> sizes{slices.groups, shape.out_channels, shape.kernel_h, shape.kernel_w, shape.channels};
  const Tensor partial = torch::stable::new_empty(weight, {sizes.data(), sizes.size()});
  const Tensor grad = torch::stable::contiguous(grad_output);
  const Tensor image = channels_last(input), shifts = torch::stable::contiguous(offset);
  const std::optional<Tensor> modulation = mask ? std::optional(torch::stable::contiguous(*mask)) : std::nullopt;
  dispatch_floating(input, "deform_conv2d", [&](auto zero) {
    using T = decltype(zero);
    BackwardWeight<T>{shape,
                      slices,
                      grad.const_data_ptr<T>(),
                      image.const_data_ptr<T>(),
                      shifts.const_data_ptr<T>(),
                      modulation ? modulation->const_data_ptr<T>() : nullptr,
                      partial.mutable_data_ptr<T>()}
        .run();
  });
  const std::vector<int64_t> first{0};
  const Tensor total = torch::stable::sum(partial, torch::headeronly::IntHeaderOnlyArrayRef(first));
  return torch::stable::contiguous(channels_first(total));
}

}  // namespace sdpt_ext::cpu
