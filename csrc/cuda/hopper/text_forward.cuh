// The text direction of bi_attention on a Hopper's tensor cores; see ../bi_attention_text_forward.cuh for the maths.
//
// A block holds two tiles of 64 text rows, one per consuming warpgroup, while the producer brings tiles of image rows
// and, after them, of prompts. Each serves both groups, as keys and as values.
#pragma once

#include "../bi_attention_text_forward.cuh"
#include "image_tiles.cuh"
#include "pipeline.cuh"

namespace sdpt_ext::cuda::hopper {

template <typename Element_>
struct TextTraits {
  using Element = Element_;
  static constexpr int kColumns = 96;  // image rows of a tile
  static constexpr int kStages = 3;
  static constexpr int kRows = hopper::kRows, kWidth = hopper::kWidth, kThreads = hopper::kThreads;
};

template <typename Element>
struct TextForwardParams : cuda::TextForwardParams<Element> {
  CUtensorMap image_map;    // (B, N, D) in boxes of kColumns rows
  CUtensorMap prompts_map;  // (1, K, D), the same
  CUtensorMap u_map;        // (B, H * L, D) in boxes of 64 rows
};

template <class Traits>
struct TextForward {
  using Element = typename Traits::Element;
  using Params = TextForwardParams<Element>;
  static constexpr int kColumns = Traits::kColumns;
  static constexpr int kSums = kRows * kWidth, kSlot = kTextSlot<Traits>;

  struct ImageTerms {
    float hidden[kColumns];  // 0, or -infinity for rows that the text does not see
  };
  using Image = Ring<Element, kColumns, Traits::kStages, ImageTerms>;

  struct Memory {
    alignas(1024) Element queries[kConsumers][kGroupRows * kWidth];
    alignas(1024) Image image;
  };

  // Of the rows that a thread holds elements of; total and mass are the thread's own parts until the end.
  struct RowState {
    uint32_t dropout_key[kRowsPerThread];
    float maximum[kRowsPerThread], total[kRowsPerThread], mass[kRowsPerThread];
  };

  const Params& p;
  Memory& shared;

  __device__ __forceinline__ void init() { shared.image.init(); }

  // ---- the producing warpgroup

  __device__ __forceinline__ void produce() {
    Cursor<Image> cursor(shared.image);
    const ImageTiles<kColumns> tiles{p.shape};
    for_each_segment(p.work, [&](const Segment& segment) {
      const int batch = static_cast<int>(segment.tile / p.tiles_per_sample());
      for (int item = segment.begin; item < segment.end; ++item) {
        const int first = tiles.first(item), rows = tiles.rows(item);
        const bool prompt = tiles.is_prompt(item);
        const bool* visible = prompt || p.image.visible == nullptr
                                  ? nullptr
                                  : p.image.visible + int64_t{batch} * p.shape.image + first;
        const Box box = prompt ? Box{&p.prompts_map, first - p.shape.image, 0} : Box{&p.image_map, first, batch};
        cursor.fill(box, kColumns, [&](ImageTerms& terms, int i) {
          terms.hidden[i] = i >= rows || (visible != nullptr && !visible[i]) ? -kInfinity : 0.0f;
        });
      }
    });
  }

  // ---- a consuming warpgroup

  __device__ __forceinline__ void consume(int group) {
    Cursor<Image> cursor(shared.image);
    const ImageTiles<kColumns> tiles{p.shape};
    const uint32_t queries = ptx::shared_address(shared.queries[group]);
    for_each_segment(p.work, [&](const Segment& segment) {
      const int batch = static_cast<int>(segment.tile / p.tiles_per_sample());
      const int first = static_cast<int>(segment.tile % p.tiles_per_sample()) * kRows + group * kGroupRows;
      if (first >= p.shape.heads * p.shape.text) {
        pass_over(cursor, segment);
        return;
      }
      load_queries(queries, batch, first, 1 + group);
      RowState state;
      start(state, batch, first);
      Fragment<kWidth> output;
      output.clear();
      for (int item = segment.begin; item < segment.end; ++item) {
        gather(output, state, cursor, queries, tiles.first(item));
      }
      reduce_rows(state.total, Sum{});
      reduce_rows(state.mass, Sum{});
      if (segment.slot < 0) {
        finish_rows(output, state, batch, first, group);
      } else {
        keep_partial(output, state, p.partial + segment.slot * kSlot, group * kGroupRows);
      }
    });
    ptx::wait_for_stores();
  }

  // Of a tile whose last rows are all past the end.
  __device__ __forceinline__ void pass_over(Cursor<Image>& cursor, const Segment& segment) {
    for (int item = segment.begin; item < segment.end; ++item) {
      cursor.wait();
      cursor.release();
    }
  }

  __device__ __forceinline__ void load_queries(uint32_t queries, int64_t batch, int first, int barrier) {
    ptx::barrier_sync(barrier, kGroupThreads);  // the last tile is on its way out
    load_rows<Element>(queries, p.shape.width, [&](int row) -> const Element* {
      const bool exists = first + row < p.shape.heads * p.shape.text;
      return exists ? p.keys + p.token(batch, first + row) * p.shape.width : nullptr;
    });
    ptx::barrier_sync(barrier, kGroupThreads);
  }

  __device__ __forceinline__ void start(RowState& state, int64_t batch, int first) {
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      state.maximum[i] = -kInfinity, state.total[i] = state.mass[i] = 0;
      state.dropout_key[i] = p.dropout.key(kText, p.token(batch, first + row_of(i)),
                                           p.shape.batch * p.shape.heads * p.shape.tokens);
    }
  }

  // Adds one image tile, whose rows count from `column`, to the running softmax.
  __device__ __forceinline__ void gather(
      Fragment<kWidth>& output, RowState& state, Cursor<Image>& cursor, uint32_t queries, int first_column) {
    Fragment<kColumns> scores;
    cursor.wait();
    begin(scores);
    multiply_transposed<Element>(scores, queries, cursor.tile());
    finish(scores);
    const float* hidden = cursor.terms().hidden;
    scores.for_each([&](float& score, int, int column) { score += hidden[column]; });
    rescale(output, state, scores);
    scores.for_each([&](float& score, int i, int) {
      score = exponential<Element>(score - finite(state.maximum[i]));
      state.total[i] += score;
    });
    if (p.dropout.active()) {
      scores.for_each([&](float& weight, int i, int column) {
        weight *= p.dropout.factor(state.dropout_key[i], first_column + column);
      });
    }
    scores.for_each([&](float& weight, int i, int) { state.mass[i] += weight; });
    const Packed<Element, kColumns> weights(scores);
    begin(output);
    multiply(output, weights, cursor.tile());
    finish(output);
    cursor.release();
  }

  // Raises the maxima to those of the new scores and brings what was summed up before to the new scale.
  __device__ __forceinline__ void rescale(Fragment<kWidth>& output, RowState& state, Fragment<kColumns>& scores) {
    float largest[kRowsPerThread] = {state.maximum[0], state.maximum[1]};
    scores.for_each([&](float& score, int i, int) { largest[i] = fmaxf(largest[i], score); });
    reduce_rows(largest, Maximum{});
    float scale[kRowsPerThread];
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      scale[i] = exponential<Element>(state.maximum[i] - finite(largest[i]));
      state.maximum[i] = largest[i];
      state.total[i] *= scale[i];
      state.mass[i] *= scale[i];
    }
    output.for_each([&](float& value, int i, int) { value *= scale[i]; });
  }

  __device__ __forceinline__ void finish_rows(
      Fragment<kWidth>& output, const RowState& state, int64_t batch, int first, int group) {
    float scale[kRowsPerThread];
    const int rows = p.shape.heads * p.shape.text;
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      scale[i] = inverse_or_zero(state.total[i]);
      if (speaks_for_row() && first + row_of(i) < rows) {
        const int64_t place = batch * rows + first + row_of(i);
        p.mass[place] = state.mass[i] * scale[i];
        p.lse[place] = log_sum_exp(state.maximum[i], state.total[i]);
      }
    }
    output.for_each([&](float& value, int i, int) { value *= scale[i]; });
    ptx::barrier_sync(1 + group, kGroupThreads);  // all warps are done with the queries, whose place the result takes
    store_tile<Element>(output, shared.queries[group], &p.u_map, first, static_cast<int>(batch), 1 + group);
  }

  __device__ __forceinline__ void keep_partial(
      Fragment<kWidth>& output, const RowState& state, float* slot, int first) {
    store_partial(output, slot + first * kWidth);
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      if (speaks_for_row()) {
        float* row = slot + kSums + first + row_of(i);
        row[0] = state.maximum[i], row[kRows] = state.total[i], row[2 * kRows] = state.mass[i];
      }
    }
  }
};

template <class Traits>
__global__ void SDPT_EXT_HOPPER_BOUNDS
    text_forward(const __grid_constant__ TextForwardParams<typename Traits::Element> params) {
#ifdef SDPT_EXT_HOPPER
  run_warpgroups(TextForward<Traits>{params, shared_memory<typename TextForward<Traits>::Memory>()});
#endif
}

}  // namespace sdpt_ext::cuda::hopper
