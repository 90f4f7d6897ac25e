// Where a tap of a deformable convolution reads its image, and the sampled columns that come of it.
#pragma once

#include <climits>

#include <torch/headeronly/util/Exception.h>

#include "../deform_shape.h"
#include "mma.cuh"

namespace sdpt_ext::cuda {

// The part of a DeformShape that kernels need, in 32 bits where the hardware likes it.
struct Geometry {
  int channels, height, width, out_channels;
  int taps, kernel_w, stride_h, stride_w, pad_h, pad_w;
  int out_w, plane;  // plane: output positions per sample
  int64_t offset_numel, mask_numel;

  explicit Geometry(const DeformShape& shape)
      : channels(shape.channels), height(shape.height), width(shape.width), out_channels(shape.out_channels),
        taps(shape.taps()), kernel_w(shape.kernel_w), stride_h(shape.stride_h), stride_w(shape.stride_w),
        pad_h(shape.pad_h), pad_w(shape.pad_w), out_w(shape.out_w()), plane(shape.positions()),
        offset_numel(shape.offset_numel), mask_numel(shape.mask_numel) {
    STD_TORCH_CHECK(shape.batch * shape.height * shape.width <= INT_MAX && shape.positions() <= INT_MAX,
                    "deform_conv2d: input or output is too large");
  }
};

// Offsets and masks of every sample, read flat as (2 * taps, plane) and (taps, plane).
template <typename Element>
struct Fields {
  const Element* offset;
  const Element* mask;  // or null
};

// The four neighbours of a position, in the order (top, left), (top, right), (bottom, left), (bottom, right).
template <typename Sum>
struct Sample {
  int top_left = 0;         // index among the pixels of the batch; a neighbour outside the image has none
  unsigned inside = 0;      // a bit per neighbour
  Sum down = 0, right = 0;  // distance from the top left neighbour
  Sum modulation = 1;

  __device__ bool is_inside(int corner) const { return inside >> corner & 1; }
  __device__ int pixel(int corner, int width) const { return top_left + corner / 2 * width + corner % 2; }
  __device__ Sum row_weight(int corner) const { return corner / 2 ? down : 1 - down; }
  __device__ Sum column_weight(int corner) const { return corner % 2 ? right : 1 - right; }
  __device__ Sum weight(int corner) const { return row_weight(corner) * column_weight(corner); }
  __device__ Sum weight_dy(int corner) const { return corner / 2 ? column_weight(corner) : -column_weight(corner); }
  __device__ Sum weight_dx(int corner) const { return corner % 2 ? row_weight(corner) : -row_weight(corner); }
};

template <typename Element>
__device__ Sample<NumberOf<Element>> locate(const Geometry& geometry,
                                         const Fields<Element>& fields,
                                         int batch_index,
                                         int position,
                                         int tap) {
  using Sum = NumberOf<Element>;
  Sample<Sum> sample;
  if (position >= geometry.plane) {
    return sample;
  }
  const Element* offset = fields.offset + int64_t{batch_index} * geometry.offset_numel + position;
  const int row = position / geometry.out_w * geometry.stride_h - geometry.pad_h + tap / geometry.kernel_w;
  const int column = position % geometry.out_w * geometry.stride_w - geometry.pad_w + tap % geometry.kernel_w;
  const Sum y = row + static_cast<Sum>(offset[int64_t{2} * tap * geometry.plane]);
  const Sum x = column + static_cast<Sum>(offset[(int64_t{2} * tap + 1) * geometry.plane]);
  if (fields.mask != nullptr) {
    const int64_t index = int64_t{batch_index} * geometry.mask_numel + int64_t{tap} * geometry.plane + position;
    sample.modulation = static_cast<Sum>(fields.mask[index]);
  }
  // Written so that a NaN offset counts as outside.
  if (y > -1 && x > -1 && y < geometry.height && x < geometry.width) {
    const int top = static_cast<int>(floor(y)), left = static_cast<int>(floor(x));
    sample.down = y - top, sample.right = x - left;
    sample.top_left = (batch_index * geometry.height + top) * geometry.width + left;
    const unsigned columns = (left >= 0) | (left + 1 < geometry.width) << 1;
    sample.inside = (top >= 0 ? columns : 0) | (top + 1 < geometry.height ? columns << 2 : 0);
  }
  return sample;
}

// One thread's share of the sampled columns: 16 bytes of channels at one position. The reads are started by fetch()
// and used by interpolate(), so that a product can run in between.
template <typename Element>
class ColumnSampler {
 public:
  static constexpr int kChunk = 16 / sizeof(Element);
  using Sum = NumberOf<Element>;

  // image: (pixels of the batch, stride), with whole 16-byte chunks of channels.
  __device__ ColumnSampler(const Element* image, int width, int stride)
      : image_(image), width_(width), stride_(stride) {}

  __device__ void move_to(const Sample<Sum>& sample) { sample_ = sample; }

  // A neighbour outside counts as zeros and is not read; so does every channel from `stride` on.
  __device__ void fetch(int channel) {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const Element* source = image_ + (int64_t{sample_.pixel(corner, width_)} * stride_ + channel);
      const bool valid = channel < stride_ && sample_.is_inside(corner);
      raw_[corner] = valid ? __ldg(reinterpret_cast<const uint4*>(source)) : uint4{};
    }
  }

  // Writes one 16-byte chunk.
  __device__ void interpolate(Element* destination) const {
    Sum weight[4];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      weight[corner] = sample_.modulation * sample_.weight(corner);
    }
    alignas(16) Element values[kChunk];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      Sum sum = 0;
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        sum += weight[corner] * static_cast<Sum>(reinterpret_cast<const Element*>(&raw_[corner])[i]);
      }
      values[i] = static_cast<Element>(sum);
    }
    *reinterpret_cast<uint4*>(destination) = *reinterpret_cast<const uint4*>(values);
  }

 private:
  const Element* image_;
  int width_, stride_;
  Sample<Sum> sample_;
  uint4 raw_[4];
};

}  // namespace sdpt_ext::cuda
