// Operands of a panel product, made from matrices in ordinary memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <torch/headeronly/util/BFloat16.h>

#include "memory.h"
#include "panel_product.h"
#include "softmax_kernels.h"

namespace sdpt_ext::cpu {

using torch::headeronly::BFloat16;  // c10's: storage of bfloat16 tensors

inline uint16_t bits_of(BFloat16 value) { return value.x; }

template <typename Element, typename Source>
Element element_of(Source low, [[maybe_unused]] Source high) {
  if constexpr (ElementTraits<Element>::kDepth == 1) {
    return static_cast<Element>(low);
  } else {
    return {static_cast<uint32_t>(bits_of(high)) << 16 | bits_of(low)};
  }
}

template <typename Element>
int64_t elements_of_depth(int64_t depth) {
  return (depth + ElementTraits<Element>::kDepth - 1) / ElementTraits<Element>::kDepth;
}

// A strided (depth, columns) matrix; one of the strides is 1.
template <typename Source>
struct Strided {
  const Source* data;
  int64_t depth_stride, column_stride;
};

// Room for one right operand of at most (depth, columns).
template <typename Element>
class Panels {
 public:
  Panels(int64_t depth, int64_t columns)
      : width_(panel_product<Element>().panel_columns),
        data_(scratch<Element>(elements_of_depth<Element>(depth) * ((columns + width_ - 1) / width_) * width_)) {}

  const Element* data() const { return data_.get(); }

  template <typename Source>
  void pack(Strided<Source> source, int64_t depth, int64_t columns) {
    const int64_t steps = elements_of_depth<Element>(depth);
    for (int64_t first = 0; first < columns; first += width_) {
      const int64_t count = std::min(width_, columns - first);
      const Source* start = source.data + first * source.column_stride;
      Element* panel = data_.get() + first * steps;
      if (source.column_stride == 1) {
        pack_panel(panel, start, source.depth_stride, std::integral_constant<int64_t, 1>(), depth, count);
      } else {
        pack_panel(panel, start, std::integral_constant<int64_t, 1>(), source.column_stride, depth, count);
      }
    }
  }

 private:
  template <typename Source, typename DepthStride, typename ColumnStride>
  void pack_panel(Element* panel,
                  const Source* start,
                  DepthStride depth_stride,
                  ColumnStride column_stride,
                  int64_t depth,
                  int64_t count) {
    constexpr int64_t kDepth = ElementTraits<Element>::kDepth;
    for (int64_t level = 0; level < depth; level += kDepth, panel += width_) {
      const Source* low = start + level * depth_stride;
      const bool has_high = level + kDepth - 1 < depth;
      for (int64_t column = 0; column < count; ++column) {
        const Source* value = low + column * column_stride;
        panel[column] = element_of<Element>(*value, has_high ? value[(kDepth - 1) * depth_stride] : Source(0));
      }
      std::fill(panel + count, panel + width_, Element{});
    }
  }

  int64_t width_;
  Scratch<Element> data_;
};

template <typename Storage, typename Number>
void store_row(Storage* out, const Number* values, int64_t n) {
  if constexpr (std::is_same_v<Storage, Number>) {
    std::copy_n(values, n, out);
  } else {
    rounding_kernels().narrow(reinterpret_cast<uint16_t*>(out), values, n);
  }
}

// Rows of a tensor as left operand, converted where the products need another type.
template <typename Storage, typename Element>
class LeftRows {
 public:
  LeftRows(int64_t rows, int64_t width) : width_(width) {
    if constexpr (kConverts) {
      room_ = scratch<Element>(rows * width);
    }
  }

  LeftOperand<Element> operator()(const Storage* data, [[maybe_unused]] int64_t rows) const {
    if constexpr (std::is_same_v<Storage, Element>) {
      return {data, width_, 1};
    } else if constexpr (kConverts) {
      std::copy_n(data, rows * width_, room_.get());
      return {room_.get(), width_, 1};
    } else {
      return {reinterpret_cast<const Element*>(data), width_ / 2, 1};
    }
  }

 private:
  static constexpr bool kConverts = std::is_same_v<Storage, BFloat16> && std::is_same_v<Element, float>;

  int64_t width_;
  Scratch<Element> room_;
};

// A (rows, columns) tile of weights as left operand: as it stands, or with rows and columns exchanged.
template <typename Element>
class WeightTile {
  using Number = NumberOf<Element>;

 public:
  WeightTile(int64_t rows, int64_t stride) : stride_(stride) {
    if constexpr (kPairs) {
      by_row_ = scratch<Element>(rows * stride / 2);
      by_column_ = scratch<Element>((rows + 1) / 2 * stride);
      zeros_.assign(stride, 0);
    }
  }

  LeftOperand<Element> by_row(const Number* data, [[maybe_unused]] int64_t rows, [[maybe_unused]] int64_t columns) {
    if constexpr (kPairs) {
      for (int64_t row = 0; row < rows; ++row) {
        auto* out = reinterpret_cast<uint16_t*>(by_row_.get() + row * stride_ / 2);
        rounding_kernels().narrow(out, data + row * stride_, columns);
        std::fill_n(out + columns, columns % 2, uint16_t{0});
      }
      return {by_row_.get(), stride_ / 2, 1};
    } else {
      return {data, stride_, 1};
    }
  }

  LeftOperand<Element> by_column(const Number* data, [[maybe_unused]] int64_t rows, [[maybe_unused]] int64_t columns) {
    if constexpr (kPairs) {
      for (int64_t row = 0; row < rows; row += 2) {
        const Number* high = row + 1 < rows ? data + (row + 1) * stride_ : zeros_.data();
        auto* out = reinterpret_cast<uint32_t*>(by_column_.get() + row / 2 * stride_);
        rounding_kernels().narrow_pairs(out, data + row * stride_, high, columns);
      }
      return {by_column_.get(), 1, stride_};
    } else {
      return {data, 1, stride_};
    }
  }

 private:
  static constexpr bool kPairs = std::is_same_v<Element, Bf16Pair>;

  int64_t stride_;
  Scratch<Element> by_row_, by_column_;
  std::vector<Number> zeros_;
};

}  // namespace sdpt_ext::cpu
