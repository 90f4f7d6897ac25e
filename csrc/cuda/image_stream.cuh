// Streams tiles of image rows, and after them the prompt rows, past a tile of text rows.
#pragma once

#include "bi_attention.cuh"

namespace sdpt_ext::cuda {

// Prompts stay in a tensor of their own: they are one more tile, not a copy of the image.
template <typename Element>
struct ImageOperand {
  const Element* rows;     // (B, N, D)
  const Element* prompts;  // (K, D)
  const bool* visible;     // (B, N) or null
  // Used in backward; prompts have no output and so none of these.
  const Element* grads;                // (B, N, D)
  const NumberOf<Element>*lse, *delta;  // (B, H, N)
};

// kGrads: with the gradients of the output and the terms of the image's softmax, for all heads of the text rows.
template <class Traits, bool kGrads>
class ImageStream {
 public:
  using Element = typename Traits::Element;
  using Number = NumberOf<Element>;
  static constexpr int kColumns = Traits::kColumns, kStages = Traits::kStages;
  static constexpr int kTermRows = kGrads ? Traits::kRows : 1;  // each text row may have a head of its own
  using ImageTile = Tile<Element, Traits::kWidth>;

  struct Memory {
    alignas(128) Element rows[kStages][kColumns * Traits::kWidth];
    alignas(128) Element grads[kGrads ? kStages : 1][kGrads ? kColumns * Traits::kWidth : 8];
    Number hidden[kStages][kColumns];
    Number lse[kGrads ? kStages : 1][kTermRows][kColumns];
    Number delta[kGrads ? kStages : 1][kTermRows][kColumns];
  };
  struct Item {
    ImageTile rows, grads;
    const Number* hidden;           // 0, or -infinity for rows that the text does not see
    const Number (*lse)[kColumns];  // of each head
    const Number (*delta)[kColumns];
    int first;  // prompt k counts as row N + k
    int count;  // image rows proper
  };

  __device__ ImageStream(Memory& memory, const ImageOperand<Element>& operand, const Sizes& shape)
      : memory_(memory), operand_(operand), shape_(shape) {}

  // At least one, so that even an empty image is visited.
  __host__ __device__ static int items(const Sizes& shape) {
    const int count = ceil_div(shape.image, kColumns) + ceil_div(shape.prompts, kColumns);
    return count > 0 ? count : 1;
  }

  // Image tiles [begin, end), with the terms of some heads.
  __device__ void start(int batch, int begin, int end, int first_head = 0, int heads = 0) {
    batch_ = batch, next_ = begin, end_ = end, first_head_ = first_head, heads_ = heads;
    if constexpr (kStages == 2) {
      fetch();
    }
  }

  // Also a barrier: whatever the block wrote to shared memory before is visible after.
  __device__ __forceinline__ Item next() {
    if constexpr (kStages == 1) {
      __syncthreads();
      fetch();
    }
    ptx::cp_async_wait_all();
    __syncthreads();
    const int stage = kStages == 2 ? (next_ - 1) % 2 : 0;
    const Item item{{memory_.rows[stage]}, {memory_.grads[stage]}, memory_.hidden[stage], memory_.lse[stage],
                    memory_.delta[stage],  first(),                image_rows()};
    if constexpr (kStages == 2) {
      fetch();
    }
    return item;
  }

 private:
  __device__ int image_tiles() const { return ceil_div(shape_.image, kColumns); }
  // Of the tile that was fetched last.
  __device__ bool is_prompt() const { return next_ - 1 >= image_tiles() && shape_.prompts > 0; }
  __device__ int first() const {
    return is_prompt() ? shape_.image + (next_ - 1 - image_tiles()) * kColumns : (next_ - 1) * kColumns;
  }
  __device__ int image_rows() const { return is_prompt() ? 0 : min(kColumns, shape_.image - first()); }

  __device__ __forceinline__ void fetch() {
    if (next_ == end_) {
      return;
    }
    const int stage = kStages == 2 ? next_ % 2 : 0;
    ++next_;
    const int width = shape_.width, row = first();
    const int64_t image_row = int64_t{batch_} * shape_.image + row;
    Rows<Element> rows{operand_.rows + image_row * width, shape_.image - row, width};
    if (is_prompt()) {
      const int prompt = row - shape_.image;
      rows = {operand_.prompts + int64_t{prompt} * width, shape_.prompts - prompt, width};
    }
    load_tile<kColumns, Traits::kThreads>(ImageTile{memory_.rows[stage]}, rows, width);
    if constexpr (kGrads) {
      const Rows<Element> grads{operand_.grads + image_row * width, image_rows(), width};
      load_tile<kColumns, Traits::kThreads>(ImageTile{memory_.grads[stage]}, grads, width);
      load_terms(stage, row);
    }
    if (const int column = threadIdx.x; column < kColumns) {
      const bool masked = operand_.visible != nullptr && column < image_rows() && !operand_.visible[image_row + column];
      memory_.hidden[stage][column] = column >= rows.count || masked ? -kInfinity : Number(0);
    }
  }

  __device__ __forceinline__ void load_terms(int stage, int row) {
    for (int i = threadIdx.x; i < heads_ * kColumns; i += Traits::kThreads) {
      const int head = i / kColumns, column = i % kColumns;
      const bool exists = column < image_rows();
      const int64_t place = (int64_t{batch_} * shape_.heads + first_head_ + head) * shape_.image + row + column;
      ptx::cp_async_number(&memory_.lse[stage][head][column], operand_.lse + (exists ? place : 0), exists);
      ptx::cp_async_number(&memory_.delta[stage][head][column], operand_.delta + (exists ? place : 0), exists);
    }
  }

  Memory& memory_;
  const ImageOperand<Element>& operand_;
  const Sizes& shape_;
  int batch_ = 0, next_ = 0, end_ = 0, first_head_ = 0, heads_ = 0;
};

}  // namespace sdpt_ext::cuda
