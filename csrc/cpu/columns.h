// Scratch memory and the sampled columns ("im2col") of a block of output positions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../deform_shape.h"
#include "sampling.h"
#include "vector_kernels.h"

namespace sdpt_ext::cpu {

template <typename T>
std::unique_ptr<T[]> scratch(int64_t numel) {
  return std::unique_ptr<T[]>(new T[numel]);
}

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Part `index` of `parts` nearly equal ones.
inline Range share(int64_t total, int64_t parts, int64_t index) {
  return {total * index / parts, total * (index + 1) / parts};
}

inline torch::stable::Tensor channels_last(const torch::stable::Tensor& tensor) {
  return torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast);
}

// (batch, height, width, channels) -> the view (batch, channels, height, width).
inline torch::stable::Tensor channels_first(const torch::stable::Tensor& tensor) {
  return torch::stable::transpose(torch::stable::transpose(tensor, 2, 3), 1, 2);
}

// Number of blocks a sample's positions are cut in, so that the columns of a block stay in the caches.
template <typename T>
int64_t block_count(const DeformShape& shape, int64_t channels) {
  constexpr int64_t kColumnBytes = int64_t{4} << 20;
  const int64_t position_bytes = shape.taps() * std::max<int64_t>(channels, 1) * int64_t{sizeof(T)};
  const int64_t longest = std::max<int64_t>(kColumnBytes / position_bytes, 32);
  return (shape.positions() + longest - 1) / longest;
}

// Pointers to the neighbours' channels from `first` on; a neighbour outside the image points to zeros, never to a
// pixel of weight zero, which could hold an infinity.
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

 private:
  const T* image_;
  int64_t channels_;
  Range slice_;
  std::vector<T> zeros_;
};

// columns: (positions of the block, taps, channels of the slice), modulated.
template <typename T>
void fill_columns(T* columns,
                  const DeformShape& shape,
                  const SampleGrid<T>& grid,
                  const NeighbourRows<T>& neighbours,
                  Range block,
                  int64_t slice_channels) {
  const VectorKernels<T>& kernels = vector_kernels<T>();
  for (int64_t position = block.begin; position < block.end; ++position) {
    for (int64_t tap = 0; tap < shape.taps(); ++tap, columns += slice_channels) {
      Sample<T> sample = grid.at(position, tap);
      for (T& weight : sample.weight) {
        weight *= sample.modulation;
      }
      const T* rows[4];
      neighbours.locate(sample, rows);
      kernels.interpolate(columns, rows, sample.weight, slice_channels);
    }
  }
}

}  // namespace sdpt_ext::cpu
