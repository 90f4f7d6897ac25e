// What the kernels of bi_attention share. B: batch, N: image rows, K: prompts, H: heads, T: text tokens of which the
// first L have outputs of their own, D: width.
#pragma once

#include "dropout.cuh"
#include "epilogue.cuh"
#include "softmax.cuh"
#include "work.cuh"

namespace sdpt_ext::cuda {

struct Sizes {
  int batch, image, prompts, heads, tokens, text, width;
};

__host__ __device__ constexpr int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// Along the image, a step of a tile's work is one head. It is all of them where texts are so short that a tile takes
// less time than to write, read and add the parts of one that blocks share.
__host__ __device__ inline int heads_of_step(const Sizes& shape) {
  constexpr int kShort = 32;
  return shape.tokens <= kShort ? shape.heads : 1;
}

// Heads of the steps [begin, end).
struct HeadRange {
  int begin, end;

  __device__ HeadRange(const Segment& segment, const Sizes& shape)
      : begin(segment.begin * heads_of_step(shape)), end(segment.end * heads_of_step(shape)) {}
};

// Whose scores against one chunk of tokens fit in registers: a tile of image rows that stays while text streams past.
template <typename Element_, int kWidth_, int kTokens_, int kRows_>
struct ImageTraits {
  using Element = Element_;
  static constexpr int kWidth = kWidth_;    // D, padded
  static constexpr int kTokens = kTokens_;  // of a chunk
  static constexpr int kRows = kRows_;      // image rows of a tile
  static constexpr int kThreads = kRows * kWarpColumns;
  static constexpr int kStep = sizeof(Element) == 2 ? 32 : 8;  // tokens of a wide slice

  // Columns of a deep slice: as many as make it no larger than a wide one.
  static constexpr int depth() {
    int columns = sizeof(Element) == 2 ? 32 : 8;
    while (columns < kWidth && 2 * columns * kTokens <= kStep * kWidth) {
      columns *= 2;
    }
    return columns;
  }
  static constexpr int kDepth = depth();
};

// A tile of text rows (h, t) that stays while tiles of kColumns image rows stream past.
template <typename Element_, int kWidth_, int kRows_, int kColumns_, int kStages_>
struct TextTraits {
  using Element = Element_;
  static constexpr int kWidth = kWidth_;
  static constexpr int kRows = kRows_;
  static constexpr int kColumns = kColumns_;
  static constexpr int kStages = kStages_;  // image tiles in shared memory: one in use, the others on their way
  static constexpr int kThreads = kRows * kWarpColumns;
};

// What backward needs to know of a text token beside its vectors.
template <typename Number>
struct TextTerm {
  Number bias;       // of the image's logits; -infinity hides the token from the image
  Number lse;        // of the token's own softmax; +infinity where it has none
  Number delta;      // gradients of u and mass times their values
  Number grad_mass;
};

template <typename Number>
struct TextTerms {
  const Number* bias;                       // (B, H, T)
  const Number *lse, *delta, *grad_mass;  // (B, H, L)

  // head counts over the whole batch.
  __device__ TextTerm<Number> load(const Sizes& shape, int64_t head, int token) const {
    TextTerm<Number> term{-kInfinity, kInfinity, 0, 0};
    if (token < shape.tokens) {
      term.bias = bias[head * shape.tokens + token];
    }
    if (token < shape.text) {
      const int64_t place = head * shape.text + token;
      term.lse = lse[place], term.delta = delta[place], term.grad_mass = grad_mass[place];
    }
    return term;
  }
};

// Dropout keys of both directions.
struct DropoutKeys {
  uint32_t image, text;

  template <typename Number>
  __device__ static DropoutKeys of(const Dropout<Number>& dropout, const Sizes& shape, int64_t token) {
    const uint32_t count = shape.batch * shape.heads * shape.tokens;
    return {dropout.key(kImage, token, count), dropout.key(kText, token, count)};
  }
};

template <typename Memory>
__device__ __forceinline__ Memory& shared_memory() {
  extern __shared__ __align__(1024) unsigned char bytes[];
  return *reinterpret_cast<Memory*>(bytes);
}

}  // namespace sdpt_ext::cuda
