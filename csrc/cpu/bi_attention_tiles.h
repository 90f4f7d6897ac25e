// How bi-directional attention is cut: tiles of image rows, groups of heads, and the operands that these multiply.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../bi_attention_shape.h"
#include "blocking.h"
#include "instruction_set.h"
#include "operands.h"

namespace sdpt_ext::cpu {

// Heads whose scores are computed together, as adjacent columns (head, token).
struct HeadGroup {
  int64_t first, count;
};

// Few heads of a long text, or all of a short one: wide enough for the products, small enough for the caches.
inline std::vector<HeadGroup> group_heads(const BiAttentionShape& shape) {
  constexpr int64_t kColumns = 288;
  const int64_t longest =
      std::clamp<int64_t>(kColumns / std::max<int64_t>(shape.tokens, 1), 1, std::max<int64_t>(shape.heads, 1));
  const int64_t count = (shape.heads + longest - 1) / longest;
  std::vector<HeadGroup> groups;
  for (int64_t index = 0; index < count; ++index) {
    const Range heads = share(shape.heads, count, index);
    groups.push_back({heads.begin, heads.size()});
  }
  return groups;
}

// The image rows of one sample in tiles whose scores against one group stay in the second-level cache.
struct Tiles {
  int64_t positions, count;
  int64_t rows;    // of the largest, prompts included
  int64_t stride;  // from one row of scores to the next: whole vectors, so an even number

  Tiles(const BiAttentionShape& shape, const std::vector<HeadGroup>& groups, int64_t number_size)
      : positions(shape.positions) {
    constexpr int64_t kBytes = 288 << 10, kVector = 16, kLongest = 252, kShortest = 12;
    int64_t widest = 1;
    for (const HeadGroup& group : groups) {
      widest = std::max(widest, group.count * shape.tokens);
    }
    stride = (widest + kVector - 1) / kVector * kVector;
    const int64_t longest = std::clamp(kBytes / number_size / stride, kShortest, kLongest);
    count = (shape.positions + longest - 1) / longest;
    rows = std::max(std::min(longest, shape.positions), shape.prompts);
  }

  Range operator[](int64_t index) const { return share(positions, count, index); }
};

// Threads that share the tiles of a sample.
inline int64_t count_parts(const Tiles& tiles) {
  return std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::max<int64_t>(tiles.count, 1));
}

// Calls body(storage, element) with a value of the tensor's type and of the type that its products are computed in.
template <typename Body>
void dispatch_products(const Tensor& tensor, const Body& body) {
  using torch::headeronly::ScalarType;
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Float) {
    return body(float{}, float{});
  }
  if (type == ScalarType::Double) {
    return body(double{}, double{});
  }
  STD_TORCH_CHECK(type == ScalarType::BFloat16, "bi_attention: expected float32, float64 or bfloat16 tensors");
#if SDPT_EXT_MULTIVERSION
  if (multiplies_bf16_pairs() && tensor.size(-1) % 2 == 0) {
    return body(BFloat16{}, Bf16Pair{});
  }
#endif
  body(BFloat16{}, float{});
}

template <typename T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace sdpt_ext::cpu
