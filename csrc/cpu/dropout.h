// Dropout of attention weights, drawn anew in every pass over the image.
#pragma once

#include <cstdint>
#include <vector>

#include "../bi_attention_shape.h"
#include "mix.h"
#include "softmax_kernels.h"

namespace sdpt_ext::cpu {

// Counter-based dropout: whether a weight is kept depends on the seed and its place alone.
class Dropout {
 public:
  enum Direction : uint32_t { kImage = 0, kText = 1 };

  Dropout(double probability, int64_t seed)
      : active_(probability > 0),
        seed_(mix(mix(static_cast<uint32_t>(seed)) ^ static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32))),
        threshold_(static_cast<uint32_t>(probability * 4294967296.0)),
        scale_(1 / (1 - probability)) {}

  bool active() const { return active_; }
  uint32_t threshold() const { return threshold_; }
  double scale() const { return scale_; }

  // One key per column (head, token) of a sample.
  std::vector<uint32_t> keys(Direction direction, int64_t sample, const BiAttentionShape& shape) const {
    std::vector<uint32_t> keys(shape.columns());
    const auto first = static_cast<uint32_t>((direction * shape.batch + sample) * shape.columns());
    for (size_t column = 0; column < keys.size(); ++column) {
      keys[column] = mix(seed_ + first + static_cast<uint32_t>(column));
    }
    return keys;
  }

  static uint32_t counter(int64_t row) { return static_cast<uint32_t>(row) * 0x9e3779b9u; }

 private:
  bool active_;
  uint32_t seed_, threshold_;
  double scale_;
};

// The factors of dropout for one row at a time: all 1 without dropout.
template <typename Number>
class KeepRow {
 public:
  KeepRow(const Dropout& dropout, int64_t columns) : dropout_(dropout), factors_(columns, Number(1)) {}

  // Of the columns whose keys are given.
  const Number* draw(const uint32_t* keys, int64_t row, int64_t columns) {
    if (dropout_.active()) {
      softmax_kernels<Number>().draw(factors_.data(),
                                     keys,
                                     Dropout::counter(row),
                                     dropout_.threshold(),
                                     static_cast<Number>(dropout_.scale()),
                                     columns);
    }
    return factors_.data();
  }

 private:
  const Dropout& dropout_;
  std::vector<Number> factors_;
};

}  // namespace sdpt_ext::cpu
