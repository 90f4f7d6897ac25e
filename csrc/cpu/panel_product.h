// Matrix products whose right operand lies in panels of a few columns, so that the innermost loop reads it in order.
//
// Packing once what many products share, and adding to the output in place, is what the general BLAS cannot do.
#pragma once

#include <cstdint>

namespace sdpt_ext::cpu {

// Two bfloat16 numbers of consecutive depth, the lower depth in the lower half: what the processor multiplies at once.
struct Bf16Pair {
  uint32_t bits;
};

// Type that products of an element are summed in, and how many steps of depth it covers.
template <typename Element>
struct ElementTraits {
  using Number = Element;
  static constexpr int64_t kDepth = 1;
};
template <>
struct ElementTraits<Bf16Pair> {
  using Number = float;
  static constexpr int64_t kDepth = 2;
};
template <typename Element>
using NumberOf = typename ElementTraits<Element>::Number;

// (rows, depth) at data[row * row_stride + depth * depth_stride]; one of the strides is 1.
template <typename Element>
struct LeftOperand {
  const Element* data;
  int64_t row_stride, depth_stride;

  LeftOperand from_row(int64_t row) const { return {data + row * row_stride, row_stride, depth_stride}; }
};

// Depth is counted in elements.
struct Extent {
  int64_t rows, columns, depth;
};

template <typename Element>
struct PanelProduct {
  int64_t panel_columns;
  // out = left right, or out += left right. Panel p holds columns [p, p + 1) * panel_columns as (depth, panel_columns).
  void (*multiply)(NumberOf<Element>* out,
                   int64_t out_stride,
                   LeftOperand<Element> left,
                   const Element* panels,
                   Extent extent,
                   bool accumulate);
};

// The implementation for this processor; for Bf16Pair there is one only where multiplies_bf16_pairs().
template <typename Element>
const PanelProduct<Element>& panel_product();

bool multiplies_bf16_pairs();

}  // namespace sdpt_ext::cpu
