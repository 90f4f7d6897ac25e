#include "../ops.h"
#include "columns.h"
#include "dispatch.h"
#include "matmul.h"
#include "slices.h"

namespace sdpt_ext::cpu {
namespace {

template <typename T>
struct BackwardData {
  const DeformShape& shape;
  const Slices& slices;
  const T* grad_output;  // (batch, out_channels, positions)
  const T* image;        // (batch, height, width, channels)
  const T* offset;       // (batch, offset_numel)
  const T* mask;         // (batch, mask_numel) or null
  const T* weight;       // (out_channels, taps, channels)
  T* grad_image;         // like image, or null
  T* grad_offset;        // (channel slices, batch, offset_numel), or null
  T* grad_mask;          // (channel slices, batch, mask_numel), or null

  void run() const {
    torch::stable::parallel_for(0, slices.tasks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        run_task(share(shape.batch, slices.groups, task / slices.channel_slices), task % slices.channel_slices);
      }
    });
  }

  void run_task(Range samples, int64_t slice_index) const {
    const Range slice = share(shape.channels, slices.channel_slices, slice_index);
    const int64_t depth = shape.taps() * slice.size();
    const auto filters = scratch<T>(shape.out_channels * depth);
    for (int64_t row = 0; row < shape.out_channels * shape.taps(); ++row) {
      std::copy_n(weight + row * shape.channels + slice.begin, slice.size(), filters.get() + row * slice.size());
    }
    const int64_t blocks = block_count<T>(shape, slice.size());
    const auto grad_columns = scratch<T>(((shape.positions() + blocks - 1) / blocks) * depth);
    for (int64_t sample = samples.begin; sample < samples.end; ++sample) {
      for (int64_t index = 0; index < blocks; ++index) {
        const Range block = share(shape.positions(), blocks, index);
        const T* grad = grad_output + sample * shape.out_channels * shape.positions() + block.begin;
        matmul<T>(row_major(grad_columns.get(), block.size(), depth),
                  {grad, block.size(), shape.out_channels, 1, shape.positions()},
                  row_major<const T>(filters.get(), shape.out_channels, depth),
                  Store::kOverwrite);
        scatter(sample, slice, slice_index, block, grad_columns.get());
      }
    }
  }

  void scatter(int64_t sample, Range slice, int64_t slice_index, Range block, const T* grad_columns) const {
    const SampleGrid<T> grid(
        shape, offset + sample * shape.offset_numel, mask ? mask + sample * shape.mask_numel : nullptr);
    const int64_t image_start = sample * shape.height * shape.width * shape.channels;
    const NeighbourRows<T> neighbours(image + image_start, shape.channels, slice);
    const int64_t row = slice_index * shape.batch + sample;
    for (int64_t position = block.begin; position < block.end; ++position) {
      for (int64_t tap = 0; tap < shape.taps(); ++tap, grad_columns += slice.size()) {
        const Sample<T> at = grid.at(position, tap);
        if (grad_image) {
          add_to_neighbours(at, grad_columns, grad_image + image_start + slice.begin, slice.size());
        }
        if (grad_offset) {
          add_field_gradients(at, grad_columns, neighbours, slice.size(), row, tap, position);
        }
      }
    }
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

  void add_field_gradients(const Sample<T>& at,
                           const T* grad_column,
                           const NeighbourRows<T>& neighbours,
                           int64_t slice_channels,
                           int64_t row,
                           int64_t tap,
                           int64_t position) const {
    const T* rows[4];
    neighbours.locate(at, rows);
    T products[4];
    vector_kernels<T>().dot_rows(products, grad_column, rows, slice_channels);
    const auto combine = [&](const T* weight) {
      return weight[0] * products[0] + weight[1] * products[1] + weight[2] * products[2] + weight[3] * products[3];
    };
    const int64_t plane = shape.positions();
    T* sample_offset = grad_offset + row * shape.offset_numel;
    sample_offset[2 * tap * plane + position] = at.modulation * combine(at.weight_dy);
    sample_offset[(2 * tap + 1) * plane + position] = at.modulation * combine(at.weight_dx);
    if (grad_mask) {
      grad_mask[row * shape.mask_numel + tap * plane + position] = combine(at.weight);
    }
  }
};

Tensor zeros(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_zeros(like, {sizes.data(), sizes.size()});
}

Tensor none_like(const Tensor& like) { return zeros(like, {0}); }

// (channel slices, batch, ...) partial gradients of a field -> the field's own shape.
Tensor sum_slices(const Tensor& partial, const Tensor& field) {
  const std::vector<int64_t> first{0};
  return torch::stable::reshape(torch::stable::sum(partial, torch::headeronly::IntHeaderOnlyArrayRef(first)),
                                field.sizes());
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
  const Slices slices(shape);
  Tensor grad_image = needs_input ? zeros(input, {shape.batch, shape.height, shape.width, shape.channels}) : none_like(input);
  const auto field = [&](bool needed, int64_t numel) {
    return needed ? zeros(input, {slices.channel_slices, shape.batch, numel}) : none_like(input);
  };
  Tensor grad_offset = field(needs_offset_or_mask, shape.offset_numel);
  Tensor grad_mask = field(needs_offset_or_mask && mask, shape.mask_numel);
  if (!shape.empty()) {
    const Tensor grad = torch::stable::contiguous(grad_output);
    const Tensor image = channels_last(input), filters = channels_last(weight);
    const Tensor shifts = torch::stable::contiguous(offset);
    const std::optional<Tensor> modulation = mask ? std::optional(torch::stable::contiguous(*mask)) : std::nullopt;
    dispatch_floating(input, "deform_conv2d", [&](auto zero) {
      using T = decltype(zero);
      BackwardData<T>{shape,
                      slices,
                      grad.const_data_ptr<T>(),
                      image.const_data_ptr<T>(),
                      shifts.const_data_ptr<T>(),
                      modulation ? modulation->const_data_ptr<T>() : nullptr,
                      filters.const_data_ptr<T>(),
                      needs_input ? grad_image.mutable_data_ptr<T>() : nullptr,
                      needs_offset_or_mask ? grad_offset.mutable_data_ptr<T>() : nullptr,
                      needs_offset_or_mask && mask ? grad_mask.mutable_data_ptr<T>() : nullptr}
          .run();
    });
  }
  if (needs_input) {
    grad_image = torch::stable::contiguous(channels_first(grad_image));
  }
  if (needs_offset_or_mask) {
    grad_offset = sum_slices(grad_offset, offset);
    grad_mask = mask ? sum_slices(grad_mask, *mask) : grad_mask;
  }
  return {grad_image, grad_offset, grad_mask};
}

}  // namespace sdpt_ext::cpu
