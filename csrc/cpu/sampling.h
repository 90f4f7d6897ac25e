// Where each tap of a deformable convolution reads its image: four neighbours, their bilinear weights, the modulation.
#pragma once

#include <cstdint>

#include "../deform_shape.h"
#include "blocking.h"

namespace sdpt_ext::cpu {

// Neighbours in the order (top, left), (top, right), (bottom, left), (bottom, right).
template <typename T>
struct Sample {
  static constexpr int64_t kOutside = -1;

  int64_t pixel[4] = {kOutside, kOutside, kOutside, kOutside};
  T weight[4] = {0, 0, 0, 0};
  T weight_dy[4] = {0, 0, 0, 0};
  T weight_dx[4] = {0, 0, 0, 0};
  T modulation = 1;
};

// std::floor is a function call on processors older than the compiler's baseline assumes.
template <typename T>
int64_t floor_to_integer(T value) {
  const auto truncated = static_cast<int64_t>(value);
  return truncated - (T(truncated) > value);
}

// Offsets and mask of one sample of the batch, read flat as (2 * taps, out_h, out_w) and (taps, out_h, out_w).
template <typename T>
class SampleGrid {
 public:
  SampleGrid(const DeformShape& shape, const T* offset, const T* mask, int64_t sample)
      : shape_(shape),
        plane_(shape.positions()),
        offset_(offset + sample * shape.offset_numel),
        mask_(mask ? mask + sample * shape.mask_numel : nullptr) {}

  // Calls visit(position, tap, sample) for every tap of every position of the block, in order.
  template <typename Visitor>
  void for_each(Range block, const Visitor& visit) const {
    const int64_t out_w = shape_.out_w();
    int64_t row = block.begin / out_w, column = block.begin % out_w;
    for (int64_t position = block.begin; position < block.end; ++position) {
      int64_t tap = 0;
      for (int64_t ky = 0; ky < shape_.kernel_h; ++ky) {
        const int64_t y = row * shape_.stride_h - shape_.pad_h + ky;
        for (int64_t kx = 0; kx < shape_.kernel_w; ++kx, ++tap) {
          const int64_t x = column * shape_.stride_w - shape_.pad_w + kx;
          visit(position, tap, at(position, tap, T(y), T(x)));
        }
      }
      if (++column == out_w) {
        column = 0, ++row;
      }
    }
  }

 private:
  Sample<T> at(int64_t position, int64_t tap, T y, T x) const {
    y += offset_[2 * tap * plane_ + position];
    x += offset_[(2 * tap + 1) * plane_ + position];
    Sample<T> sample;
    sample.modulation = mask_ ? mask_[tap * plane_ + position] : T(1);
    // Written so that a NaN offset counts as outside.
    if (y > -1 && x > -1 && y < T(shape_.height) && x < T(shape_.width)) {
      place(sample, y, x);
    }
    return sample;
  }

  void place(Sample<T>& sample, T y, T x) const {
    const int64_t top = floor_to_integer(y), left = floor_to_integer(x);
    const T down = y - T(top), right = x - T(left);
    const T row_weight[2] = {1 - down, down}, column_weight[2] = {1 - right, right};
    for (int corner = 0; corner < 4; ++corner) {
      const int lower = corner / 2, further = corner % 2;
      const int64_t row = top + lower, column = left + further;
      if (row < 0 || column < 0 || row >= shape_.height || column >= shape_.width) {
        continue;
      }
      sample.pixel[corner] = row * shape_.width + column;
      sample.weight[corner] = row_weight[lower] * column_weight[further];
      sample.weight_dy[corner] = lower ? column_weight[further] : -column_weight[further];
      sample.weight_dx[corner] = further ? row_weight[lower] : -row_weight[lower];
    }
  }

  const DeformShape& shape_;
  int64_t plane_;
  const T* offset_;
  const T* mask_;
};

}  // namespace sdpt_ext::cpu
