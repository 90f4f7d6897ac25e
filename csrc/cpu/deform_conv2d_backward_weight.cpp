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
struct BackwardWeight {
  const DeformShape& shape;
  const BackwardTasks& tasks;
  const T* grad_output;  // (batch, positions, out_channels)
  const T* image;        // (batch, height, width, channels)
  const T* offset;       // (batch, offset_numel)
  const T* mask;         // (batch, mask_numel) or null
  T* grad_weight;        // (sample groups, out_channels, taps, channels)

  void run() const {
    torch::stable::parallel_for(0, tasks.count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        run_task(task / tasks.channel_slices, share(shape.channels, tasks.channel_slices, task % tasks.channel_slices));
      }
    });
  }

  void run_task(int64_t group, Range slice) const {
    const int64_t rows = shape.out_channels * shape.taps();
    const auto sums = scratch<T>(rows * slice.size());
    std::fill_n(sums.get(), rows * slice.size(), T(0));
    const Blocks blocks(shape, slice.size(), sizeof(T));
    const int64_t depth = shape.taps() * slice.size();
    const auto columns = scratch<T>(blocks.longest() * depth);
    Panels<T> panels(blocks.longest(), depth);
    const Range samples = share(shape.batch, tasks.sample_groups, group);
    for (int64_t sample = samples.begin; sample < samples.end; ++sample) {
      for (int64_t index = 0; index < blocks.count; ++index) {
        add_block(sample, slice, blocks[index], columns.get(), panels, sums.get());
      }
    }
    T* out = grad_weight + group * rows * shape.channels + slice.begin;
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(sums.get() + row * slice.size(), slice.size(), out + row * shape.channels);
    }
  }

  void add_block(int64_t sample, Range slice, Range block, T* columns, Panels<T>& panels, T* sums) const {
    const SampleGrid<T> grid(shape, offset, mask, sample);
    const T* sample_image = image + sample * shape.height * shape.width * shape.channels;
    fill_columns(columns, grid, NeighbourRows<T>(sample_image, shape.channels, slice), block);
    const int64_t plane = shape.positions(), depth = shape.taps() * slice.size();
    const T* grad = grad_output + (sample * plane + block.begin) * shape.out_channels;
    panels.pack(Strided<T>{columns, depth, 1}, block.size(), depth);
    panel_product<T>().multiply(
        sums, depth, {grad, 1, shape.out_channels}, panels.data(), {shape.out_channels, depth, block.size()}, true);
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
  if (shape.empty() || shape.channels == 0) {
    return torch::stable::new_zeros(weight, weight.sizes());
  }
  const BackwardTasks tasks(shape, torch::stable::get_num_threads());
  const Tensor partial =
      empty(weight, {tasks.sample_groups, shape.out_channels, shape.kernel_h, shape.kernel_w, shape.channels});
  const Tensor grad = channels_last(grad_output), image = channels_last(input);
  const Tensor shifts = torch::stable::contiguous(offset);
  const std::optional<Tensor> modulation = contiguous(mask);
  dispatch_floating(input, "deform_conv2d", [&](auto zero) {
    using T = decltype(zero);
    BackwardWeight<T>{shape,
                      tasks,
                      grad.const_data_ptr<T>(),
                      image.const_data_ptr<T>(),
                      shifts.const_data_ptr<T>(),
                      data_or_null<T>(modulation),
                      partial.mutable_data_ptr<T>()}
        .run();
  });
  return torch::stable::contiguous(as_channels_last(sum_first(partial)));
}

}  // namespace sdpt_ext::cpu
