// The sampled columns ("im2col") of a block of output positions.
#pragma once

#include <cstdint>
#include <vector>

#include "../deform_shape.h"
#include "blocking.h"
#include "sampling.h"
#include "vector_kernels.h"

namespace sdpt_ext::cpu {

// Pointers to the neighbours' channels in a slice. A neighbour outside the image points to zeros, never to a pixel
// of weight zero, which could hold an infinity.
template <typename T>
class NeighbourRows {
 public:
  NeighbourRows(const T* image, int64_t channels, Range slice)
      : image_(image), channels_(channels), slice_(slice), zeros_(slice.size(), T(0)) {}

  void locate(const Sample<T>& sample, const T* rows[4]) const {
    for (int corner = 0; corner < 4; ++corner) {
      rows[corner] = sample.pixel[corner] == Sample<T>::kOutside
                         ? zeros_.data()
                         : image_ + sample.pixel[corner] * channels_ + slice_.begin;
    }
  }

  int64_t channels() const { return slice_.size(); }

 private:
  const T* image_;
  int64_t channels_;
  Range slice_;
  std::vector<T> zeros_;
};

// columns: (positions of the block, taps, channels of the slice), modulated.
template <typename T>
void fill_columns(T* columns, const SampleGrid<T>& grid, const NeighbourRows<T>& neighbours, Range block) {
  const VectorKernels<T>& kernels = vector_kernels<T>();
  grid.for_each(block, [&](int64_t, int64_t, const Sample<T>& sample) {
    T weight[4];
    for (int corner = 0; corner < 4; ++corner) {
      weight[corner] = sample.modulation * sample.weight[corner];
    }
    const T* rows[4];
    neighbours.locate(sample, rows);
    kernels.interpolate(columns, rows, weight, neighbours.channels());
    columns += neighbours.channels();
  });
}

}  // namespace sdpt_ext::cpu
