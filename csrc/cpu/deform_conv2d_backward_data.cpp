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
struct BackwardData {
  const DeformShape& shape;
  const BackwardTasks& tasks;
  const T* grad_output;  // (batch, positions, out_channels)
  const T* image;        // (batch, height, width, channels)
  const T* offset;       // (batch, offset_numel)
  const T* mask;         // (batch, mask_numel) or null
  const T* weight;       // (out_channels, taps, channels)
  T* grad_image;         // like image, or null
  T* grad_offset;        // (channel slices, batch, offset_numel), or null
  T* grad_mask;          // (channel slices, batch, mask_numel), or null

  void run() const {
    torch::stable::parallel_for(0, tasks.count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        run_task(share(shape.batch, tasks.sample_groups, task / tasks.channel_slices), task % tasks.channel_slices);
      }
    });
  }

  void run_task(Range samples, int64_t slice_index) const {
    const Range slice = share(shape.channels, tasks.channel_slices, slice_index);
    const int64_t depth = shape.taps() * slice.size();
    const auto filters = sliced_filters(slice);
    const Blocks blocks(shape, slice.size(), sizeof(T));
    const auto grad_columns = scratch<T>(blocks.longest() * depth);
    for (int64_t sample = samples.begin; sample < samples.end; ++sample) {
      for (int64_t index = 0; index < blocks.count; ++index) {
        const Range block = blocks[index];
        const T* grad = grad_output + (sample * shape.positions() + block.begin) * shape.out_channels;
        panel_product<T>().multiply(grad_columns.get(),
                                    depth,
                                    {grad, shape.out_channels, 1},
                                    filters.data(),
                                    {block.size(), depth, shape.out_channels},
                                    false);
        spread(sample, slice, slice_index, block, grad_columns.get());
      }
    }
  }

  // (out_channels, taps x channels of the slice)
  Panels<T> sliced_filters(Range slice) const {
    const int64_t rows = shape.out_channels * shape.taps(), depth = shape.taps() * slice.size();
    const auto filters = scratch<T>(rows * slice.size());
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(weight + row * shape.channels + slice.begin, slice.size(), filters.get() + row * slice.size());
    }
    Panels<T> panels(shape.out_channels, depth);
    panels.pack(Strided<T>{filters.get(), depth, 1}, shape.out_channels, depth);
    return panels;
  }

  void spread(int64_t sample, Range slice, int64_t slice_index, Range block, const T* grad_column) const {
    const SampleGrid<T> grid(shape, offset, mask, sample);
    const int64_t image_start = sample * shape.height * shape.width * shape.channels;
    const NeighbourRows<T> neighbours(image + image_start, shape.channels, slice);
    const int64_t row = slice_index * shape.batch + sample, plane = shape.positions();
    grid.for_each(block, [&](int64_t position, int64_t tap, const Sample<T>& at) {
      if (grad_image) {
        add_to_neighbours(at, grad_column, grad_image + image_start + slice.begin, slice.size());
      }
      if (grad_offset) {
        T* sample_offset = grad_offset + row * shape.offset_numel + 2 * tap * plane + position;
        T* sample_mask = grad_mask ? grad_mask + row * shape.mask_numel + tap * plane + position : nullptr;
        set_field_gradients(at, grad_column, neighbours, sample_offset, sample_offset + plane, sample_mask);
      }
      grad_column += slice.size();
    });
  }

  void add_to_neighbours(const Sample<T>& at, const T* grad_column, T* grad_pixels, int64_t slice_channels) const {
    for (int corner = 0; corner < 4; ++corner) {
      if (at.pixel[corner] != Sample<T>::kOutside) {
        vector_kernels<T>().add_scaled(grad_pixels + at.pixel[corner] * shape.channels,
                                       grad_column,
                                       at.weight[corner] * at.modulation,
                                       slice_channels);
      }
    }
  }

  static void set_field_gradients(const Sample<T>& at,
                                  const T* grad_column,
                                  const NeighbourRows<T>& neighbours,
                                  T* grad_dy,
                                  T* grad_dx,
                                  T* grad_modulation) {
    const T* rows[4];
    neighbours.locate(at, rows);
    T products[4];
    vector_kernels<T>().dot_rows(products, grad_column, rows, neighbours.channels());
    const auto combine = [&](const T* weight) {
      return weight[0] * products[0] + weight[1] * products[1] + weight[2] * products[2] + weight[3] * products[3];
    };
    *grad_dy = at.modulation * combine(at.weight_dy);
    *grad_dx = at.modulation * combine(at.weight_dx);
    if (grad_modulation) {
      *grad_modulation = combine(at.weight);
    }
  }
};

// (channel slices, batch, numel) partial gradients of an offset or mask tensor -> its gradient.
Tensor sum_slices(const Tensor& partial, const Tensor& field) {
  return torch::stable::reshape(sum_first(partial), field.sizes());
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
  const bool needs_offset = needs_offset_or_mask, needs_mask = needs_offset_or_mask && mask;
  const BackwardTasks tasks(shape, torch::stable::get_num_threads());
  const auto none = [&] { return empty(input, {0}); };
  const auto partial = [&](int64_t numel) { return zeros(input, {tasks.channel_slices, shape.batch, numel}); };
  const Tensor grad_image =
      needs_input ? zeros(input, {shape.batch, shape.height, shape.width, shape.channels}) : none();
  const Tensor grad_offset = needs_offset ? partial(shape.offset_numel) : none();
  const Tensor grad_mask = needs_mask ? partial(shape.mask_numel) : none();
  if (!shape.empty()) {
    const Tensor grad = channels_last(grad_output), image = channels_last(input), filters = channels_last(weight);
    const Tensor shifts = torch::stable::contiguous(offset);
    const std::optional<Tensor> modulation = contiguous(mask);
    dispatch_floating(input, "deform_conv2d", [&](auto zero) {
      using T = decltype(zero);
      BackwardData<T>{shape,
                      tasks,
                      grad.const_data_ptr<T>(),
                      image.const_data_ptr<T>(),
                      shifts.const_data_ptr<T>(),
                      data_or_null<T>(modulation),
                      filters.const_data_ptr<T>(),
                      needs_input ? grad_image.mutable_data_ptr<T>() : nullptr,
                      needs_offset ? grad_offset.mutable_data_ptr<T>() : nullptr,
                      needs_mask ? grad_mask.mutable_data_ptr<T>() : nullptr}
          .run();
    });
  }
  return {needs_input ? as_channels_last(grad_image) : none(),
          needs_offset ? sum_slices(grad_offset, offset) : none(),
          needs_mask ? sum_slices(grad_mask, *mask) : none()};
}

}  // namespace sdpt_ext::cpu
