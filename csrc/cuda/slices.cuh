// Streams the text side past a tile of image rows, one slice in shared memory while the next one is on its way.
#pragma once

#include "tile.cuh"

namespace sdpt_ext::cuda {

// (batch, heads, rows, width) of which the first `rows` tokens of every head exist; the others count as zeros.
template <typename Element>
struct TextOperand {
  const Element* base;
  int rows;

  __device__ Rows<Element> tokens(int64_t batch_head, int first, int width) const {
    return {base + (batch_head * rows + first) * width, rows - first, width};
  }
};

// Tokens are visited in chunks whose scores fit in registers. Scores need the chunk of an operand once, cut along its
// width ("deep" slices, kTokens x kDepth); outputs need it once more, cut along the tokens ("wide" slices,
// kStep x kWidth). Where one chunk holds all tokens of a head it is visited once. Else there are two sweeps, of which
// the first one makes do with the first kFirst deep operands.
template <class Traits, int kDeep, int kWide, int kFirst>
class SliceStream {
 public:
  using Element = typename Traits::Element;
  using Deep = Tile<Element, Traits::kDepth>;
  using Wide = Tile<Element, Traits::kWidth>;
  static constexpr int kStage = Traits::kTokens * Traits::kDepth > Traits::kStep * Traits::kWidth
                                    ? Traits::kTokens * Traits::kDepth
                                    : Traits::kStep * Traits::kWidth;
  static constexpr int kStages = 2;

  // operands: the deep ones, then the wide ones. tokens: of every head.
  __device__ SliceStream(Element* memory, const TextOperand<Element>* operands, int tokens, int width)
      : memory_(memory), operands_(operands), tokens_(tokens), width_(width) {}

  __device__ int chunks() const { return (tokens_ + Traits::kTokens - 1) / Traits::kTokens; }
  __device__ int deep_slices() const { return (width_ + Traits::kDepth - 1) / Traits::kDepth; }
  __device__ int wide_slices(int chunk) const {
    return (min(tokens_ - chunk * Traits::kTokens, Traits::kTokens) + Traits::kStep - 1) / Traits::kStep;
  }

  // A head takes this many; visit v meets chunk v % chunks().
  __device__ int visits() const { return chunks() == 1 ? 1 : 2 * chunks(); }
  __device__ bool is_last_sweep(int visit) const { return visit + chunks() >= visits(); }

  // Heads are counted over the whole batch.
  __device__ void start(int64_t head, int heads) {
    head_ = head, heads_left_ = heads, visit_ = operand_ = slice_ = 0;
    fetch();
  }

  __device__ Deep next_deep() { return {next()}; }
  __device__ Wide next_wide() { return {next()}; }

 private:
  // Also a barrier: whatever the block wrote to shared memory before is visible after.
  __device__ __forceinline__ Element* next() {
    ptx::cp_async_wait_all();
    __syncthreads();
    Element* ready = memory_ + parity_ * kStage;
    parity_ ^= 1;
    fetch();
    return ready;
  }

  __device__ __forceinline__ void fetch() {
    if (heads_left_ == 0) {
      return;
    }
    const int chunk = visit_ % chunks(), first = chunk * Traits::kTokens;
    Element* stage = memory_ + parity_ * kStage;
    if (operand_ < kDeep) {
      const int column = slice_ * Traits::kDepth;
      Rows<Element> rows = operands_[operand_].tokens(head_, first, width_);
      rows.base += column;
      load_tile<Traits::kTokens, Traits::kThreads>(Deep{stage}, rows, width_ - column);
    } else {
      const Rows<Element> rows = operands_[operand_].tokens(head_, first + slice_ * Traits::kStep, width_);
      load_tile<Traits::kStep, Traits::kThreads>(Wide{stage}, rows, width_);
    }
    advance(chunk);
  }

  __device__ __forceinline__ void advance(int chunk) {
    if (++slice_ < (operand_ < kDeep ? deep_slices() : wide_slices(chunk))) {
      return;
    }
    slice_ = 0;
    if (++operand_ < (is_last_sweep(visit_) ? kDeep + kWide : kFirst)) {
      return;
    }
    operand_ = 0;
    if (++visit_ == visits()) {
      visit_ = 0, ++head_, --heads_left_;
    }
  }

  Element* memory_;
  const TextOperand<Element>* operands_;
  int tokens_, width_;
  int64_t head_ = 0;
  int heads_left_ = 0, visit_ = 0, operand_ = 0, slice_ = 0, parity_ = 0;
};

}  // namespace sdpt_ext::cuda
