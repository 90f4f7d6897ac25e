// Where one tap of a deformable convolution reads its image: four neighbours, their bilinear weights, the modulation.
#pragma once

#include <cmath>
#include <cstdint>

#include "../deform_shape.h"

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

// Offsets and mask of one sample of the batch, read flat as (2 * taps, out_h, out_w) and (taps, out_h, out_w).
template <typename T>
class SampleGrid {
 public:
  SampleGrid(const DeformShape& shape, const T* offset, const T* mask, int64_t sample)
      : shape_(shape),
        plane_(shape.positions()),
        out_w_(shape.out_w()),
        offset_(offset + sample * shape.offset_numel),
        mask_(mask ? mask + sample * shape.mask_numel : nullptr) {}

  Sample<T> at(int64_t position, int64_t tap) const {
    const int64_t row = position / out_w_ * shape_.stride_h - shape_.pad_h + tap / shape_.kernel_w;
    const int64_t column = position % out_w_ * shape_.stride_w - shape_.pad_w + tap % shape_.kernel_w;
    const T y = T(row) + offset_[2 * tap * plane_ + position];
    const T x = T(column) + offset_[(2 * tap + 1) * plane_ + position];
    Sample<T> sample;
    sample.modulation = mask_ ? mask_[tap * plane_ + position] : T(1);
    // Written so that a NaN offset counts as outside.
    if (y > -1 && x > -1 && y < T(shape_.height) && x < T(shape_.width)) {
      place(sample, y, x);
    }
    return sample;
  }

 private:
  void place(Sample<T>& sample, T y, T x) const {
    const T top = std::floor(y), left = std::floor(x);
    const T down = y - top, right = x - left;
    const T row_weight[2] = {1 - down, down}, column_weight[2] = {1 - right, right};
    for (int corner = 0; corner < 4; ++corner) {
      const int lower = corner / 2, further = corner % 2;
      const int64_t row = int64_t(top) + lower, column = int64_t(left) + further;
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
  int64_t plane_, out_w_;
  const T* offset_;
  const T* mask_;
};

}  // namespace sdpt_ext::cpu
