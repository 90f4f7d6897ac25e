// What a deformable convolution costs at least: the floors that benchmarks hold a measurement against.
#pragma once

#include <cstdint>

#include "../cpu/blocking.h"
#include "../deform_shape.h"

namespace sdpt_ext::host {

struct Cost {
  int64_t flops;            // needed by the definition, recomputation not counted
  int64_t bytes;            // every operand read once and every result written once
  int64_t tasks;            // parts that threads share
  int64_t workspace_bytes;  // scratch of one thread
};

struct DeformPlan {
  Cost forward, backward;
};

inline DeformPlan plan_deform_conv2d(const DeformShape& shape, int64_t element_size, int64_t threads) {
  const int64_t columns = shape.batch * shape.positions() * shape.taps() * shape.channels;
  const int64_t product_flops = 2 * columns * shape.out_channels;
  // Four products and three sums per bilinear sample; its transpose and the dot products for the offsets cost twice
  // that.
  const int64_t sample_flops = 7 * columns;
  const int64_t image = shape.batch * shape.channels * shape.height * shape.width;
  const int64_t fields = shape.batch * (3 * shape.taps()) * shape.positions();
  const int64_t filters = shape.out_channels * (shape.taps() * shape.channels + 1);
  const int64_t output = shape.batch * shape.out_channels * shape.positions();

  const cpu::Blocks blocks(shape, shape.channels, element_size, threads);
  const cpu::BackwardTasks tasks(shape, threads);
  const int64_t slice = (shape.channels + tasks.channel_slices - 1) / tasks.channel_slices;
  const cpu::Blocks slice_blocks(shape, slice, element_size);
  const int64_t slice_numbers = (slice_blocks.longest() + shape.out_channels) * shape.taps() * slice;
  return {{product_flops + sample_flops,
           (image + fields + filters + output) * element_size,
           shape.batch * blocks.count,
           blocks.longest() * shape.taps() * shape.channels * element_size},
          {2 * product_flops + 3 * sample_flops,
           (2 * (image + fields + filters) + output) * element_size,
           tasks.count(),
           slice_numbers * element_size}};
}

}  // namespace sdpt_ext::host
