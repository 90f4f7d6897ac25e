// What every text token has gathered from the image rows that were visited so far.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "bi_attention_tiles.h"

namespace sdpt_ext::cpu {

template <typename Number>
constexpr Number kInfinity = std::numeric_limits<Number>::infinity();

// Softmax over image rows that come one tile at a time (Milakov and Gimelshein, 2018), for every head and text token.
template <typename Number>
struct OnlineSoftmax {
  std::vector<Number> maximum, total, kept;  // (heads, tokens)
  std::vector<Number> sums;                  // (heads, text, width), weighted image rows

  explicit OnlineSoftmax(const BiAttentionShape& shape)
      : maximum(shape.columns()),
        total(shape.columns()),
        kept(shape.columns()),
        sums(shape.heads * shape.text * shape.width) {}

  void reset() {
    std::fill(maximum.begin(), maximum.end(), -kInfinity<Number>);
    std::fill(total.begin(), total.end(), Number(0));
    std::fill(kept.begin(), kept.end(), Number(0));
    std::fill(sums.begin(), sums.end(), Number(0));
  }

  // The columns' maxima rise to `raised`.
  void rescale(const BiAttentionShape& shape, const HeadGroup& group, const Number* raised) {
    for (int64_t head = group.first; head < group.first + group.count; ++head) {
      for (int64_t token = 0; token < shape.text; ++token) {
        const int64_t column = head * shape.tokens + token;
        const Number before = maximum[column], after = raised[column - group.first * shape.tokens];
        if (after > before) {
          const Number factor = std::exp(before - after);
          maximum[column] = after, total[column] *= factor, kept[column] *= factor;
          Number* row = sums.data() + (head * shape.text + token) * shape.width;
          std::for_each(row, row + shape.width, [factor](Number& sum) { sum *= factor; });
        }
      }
    }
  }
};

}  // namespace sdpt_ext::cpu
