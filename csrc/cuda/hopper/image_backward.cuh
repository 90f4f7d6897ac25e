// Gradients of the image rows and of the prompts on a Hopper's tensor cores; see ../bi_attention_image_backward.cuh for
// the maths.
//
// A block holds two tiles of 64 rows and of their output gradients, one of each per consuming warpgroup, while the
// producer brings what the text has of one head after another, or of two at once where texts are short, chunk by chunk.
// The gradients of all of a head's scores need its deltas: a head of more than one chunk comes twice, the first time
// for those alone. Score gradients and weights become operands in registers, so that one accumulator sums over chunks
// and heads.
#pragma once

#include "../bi_attention_image_backward.cuh"
#include "head_columns.cuh"
#include "pipeline.cuh"

namespace sdpt_ext::cuda::hopper {

template <typename Element_, int kHeads_, int kTokens_, int kUsed_, int kStages_>
struct ImageGradTraits {
  using Element = Element_;
  static constexpr int kHeads = kHeads_;    // at once: 1, or 2 of which all tokens are one chunk
  static constexpr int kTokens = kTokens_;  // of a chunk
  static constexpr int kUsed = kUsed_;      // columns of a chunk that hold a token
  static constexpr int kStages = kStages_;
  static constexpr int kRows = hopper::kRows, kWidth = hopper::kWidth, kThreads = hopper::kThreads;
};

template <typename Element>
struct ImageBackwardParams : cuda::ImageBackwardParams<Element> {
  CUtensorMap x_map, grad_y_map, grad_x_map;     // (B, N, D) in boxes of 64 rows
  CUtensorMap prompts_map;                       // (1, K, D), the same
  CUtensorMap keys_map, values_map, grad_u_map;  // (B, H, T or L, D) in boxes of a chunk
};

template <class Traits>
struct ImageBackward {
  using Element = typename Traits::Element;
  using Params = ImageBackwardParams<Element>;
  static constexpr int kHeads = Traits::kHeads, kTokens = Traits::kTokens, kChunk = kHeads * kTokens;
  using Columns = HeadColumns<kHeads>;
  static constexpr int kSoftmaxes = Columns::kSoftmaxes;
  static constexpr int kSlot = kImageGradSlot<Traits>;

  struct KeyTerms {
    float bias[kChunk], lse[kChunk];
    uint32_t dropout_keys[kChunk];  // of the image
  };
  struct GradTerms {
    float delta[kChunk], grad_mass[kChunk];
    uint32_t dropout_keys[kChunk];  // of the text
  };
  // Beside keys and beside grad_u: there is no room for both.
  union TokenTerms {
    KeyTerms keys;
    GradTerms grads;
  };
  using Tokens = Ring<Element, kChunk, Traits::kStages, TokenTerms>;
  using Scores = Fragment<kChunk>;

  struct Memory {
    alignas(1024) Element rows[kConsumers][kGroupRows * kWidth];
    alignas(1024) Element grad_y[kConsumers][kGroupRows * kWidth];
    alignas(1024) Tokens tokens;
    Residence residence;  // of rows and grad_y
  };

  // The two that a thread holds elements of.
  struct Rows {
    int row[kRowsPerThread];                           // prompt k counts as row N + k
    float hidden[kRowsPerThread];              // 0, or -infinity where the text does not see the row
    float lse[kSoftmaxes], delta[kSoftmaxes];  // of the heads at hand
  };

  const Params& p;
  Memory& shared;

  __device__ int chunks() const { return kHeads == 1 ? ceil_div(p.shape.tokens, kTokens) : 1; }


  __device__ __forceinline__ void init() {
    shared.residence.init();
    shared.tokens.init();
  }

  // ---- the producing warpgroup

  __device__ __forceinline__ void produce() {
    Cursor<Tokens> cursor(shared.tokens);
    uint32_t parity = 1;
    for_each_segment(p.work, [&](const Segment& segment) {
      const RowTile tile(p.shape, p.work, kRows, segment.tile);
      for (int group = 0; group < kConsumers; ++group) {
        load_rows(tile, group, parity);
      }
      parity ^= 1;
      const HeadRange heads(segment, p.shape);
      for (int head = heads.begin; head < heads.end; head += kHeads) {
        load_heads(cursor, static_cast<int>(tile.batch), head);
      }
    });
  }

  __device__ __forceinline__ void load_rows(const RowTile& tile, int group, uint32_t parity) {
    const int batch = static_cast<int>(tile.batch), first = tile.first + group * kGroupRows;
    shared.residence.fill(group, parity, 2 * kGroupTileBytes, [&](uint32_t barrier) {
      const Box box = tile.prompt ? Box{&p.prompts_map, first, 0} : Box{&p.x_map, first, batch};
      box.load(ptx::shared_address(shared.rows[group]), kGroupTileBytes, barrier);
      // Past the image are zeros: prompts have no output.
      const Box grads{&p.grad_y_map, tile.prompt ? p.shape.image : first, batch};
      grads.load(ptx::shared_address(shared.grad_y[group]), kGroupTileBytes, barrier);
    });
  }

  __device__ __forceinline__ void load_heads(Cursor<Tokens>& cursor, int batch, int head) {
    const int chunks = this->chunks(), visits = chunks == 1 ? 1 : 2 * chunks;
#pragma unroll 1  // the producer has few registers
    for (int visit = 0; visit < visits; ++visit) {
      const int first = visit % chunks * kTokens;
      cursor.fill(HeadBox{&p.values_map, head, first, batch});
      cursor.fill(HeadBox{&p.keys_map, head, first, batch}, kChunk, [&](TokenTerms& terms, int i) {
        const TextTerm<float> term = term_of(batch, head + i % kHeads, first + i / kHeads);
        terms.keys.bias[i] = term.bias, terms.keys.lse[i] = term.lse;
        terms.keys.dropout_keys[i] = dropout_key(kImage, batch, head + i % kHeads, first + i / kHeads);
      });
      if (visit + chunks >= visits) {
        cursor.fill(HeadBox{&p.grad_u_map, head, first, batch}, kChunk, [&](TokenTerms& terms, int i) {
          const TextTerm<float> term = term_of(batch, head + i % kHeads, first + i / kHeads);
          terms.grads.delta[i] = term.delta, terms.grads.grad_mass[i] = term.grad_mass;
          terms.grads.dropout_keys[i] = dropout_key(kText, batch, head + i % kHeads, first + i / kHeads);
        });
      }
    }
  }

  __device__ __forceinline__ TextTerm<float> term_of(int batch, int head, int token) const {
    const bool exists = head < p.shape.heads;
    return p.text.load(p.shape, int64_t{batch} * p.shape.heads + head, exists ? token : p.shape.tokens);
  }

  __device__ __forceinline__ uint32_t dropout_key(Direction direction, int batch, int head, int token) const {
    const int tokens = p.shape.tokens, heads = p.shape.heads;
    return p.dropout.key(direction, (batch * heads + head) * tokens + token, p.shape.batch * heads * tokens);
  }

  // ---- a consuming warpgroup

  __device__ __forceinline__ void consume(int group) {
    Cursor<Tokens> cursor(shared.tokens);
    uint32_t parity = 0;
    for_each_segment(p.work, [&](const Segment& segment) {
      const RowTile tile(p.shape, p.work, kRows, segment.tile);
      Rows rows = locate_rows(tile, group);
      wait_for_phase(shared.residence.full[group], parity);
      parity ^= 1;
      Fragment<kWidth> output;
      output.clear();
      const HeadRange heads(segment, p.shape);
      for (int head = heads.begin; head < heads.end; head += kHeads) {
        attend(output, rows, cursor, tile.batch, head, group);
      }
      if (segment.slot >= 0) {
        store_partial(output, p.partial + segment.slot * kSlot + group * kGroupRows * kWidth);
      } else if (tile.prompt) {
        store_prompts(output, tile, group);
      } else {
        ptx::barrier_sync(1 + group, kGroupThreads);  // all warps are done with the rows, whose place the result takes
        store_tile<Element>(output,
                            shared.rows[group],
                            &p.grad_x_map,
                            tile.first + group * kGroupRows,
                            static_cast<int>(tile.batch),
                            1 + group);
      }
      arrive(shared.residence.empty[group]);
    });
    ptx::wait_for_stores();
  }

  __device__ __forceinline__ Rows locate_rows(const RowTile& tile, int group) {
    Rows rows;
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      const int own = group * kGroupRows + row_of(i), place = tile.first + own;
      rows.row[i] = tile.prompt ? p.shape.image + place : place;
      const bool masked =
          in_image(rows.row[i]) && p.visible != nullptr && !p.visible[tile.batch * p.shape.image + place];
      rows.hidden[i] = own >= tile.count || masked ? -kInfinity : 0.0f;
    }
    return rows;
  }

  __device__ bool in_image(int row) const { return row < p.shape.image; }

  // Where image_lse and image_delta have a row of the k-th head of a thread, or -1.
  __device__ __forceinline__ int64_t place_of(const Rows& rows, int64_t batch, int first_head, int i, int k) const {
    const int head = first_head + Columns::head_of(k);
    const bool exists = in_image(rows.row[i]) && head < p.shape.heads;
    return exists ? (batch * p.shape.heads + head) * p.shape.image + rows.row[i] : -1;
  }

  // Adds what flows back through kHeads heads.
  __device__ __forceinline__ void attend(
      Fragment<kWidth>& output, Rows& rows, Cursor<Tokens>& cursor, int64_t batch, int head, int group) {
    Columns::for_each_softmax([&](int index, int i, int k) {
      const int64_t place = place_of(rows, batch, head, i, k);
      rows.lse[index] = place < 0 ? kInfinity : p.image_lse[place];
      rows.delta[index] = 0;
    });
    if (chunks() > 1) {
#pragma unroll 1
      for (int chunk = 0; chunk < chunks(); ++chunk) {
        Scores scores, grads;
        score(scores, grads, rows, cursor, group);
        add_delta(scores, grads, rows, cursor.terms().keys);
        cursor.release();
      }
      finish_delta(rows, batch, head);
    }
#pragma unroll 1
    for (int chunk = 0; chunk < chunks(); ++chunk) {
      add_chunk(output, rows, cursor, batch, head, group);
    }
  }

  __device__ __forceinline__ void add_chunk(
      Fragment<kWidth>& output, Rows& rows, Cursor<Tokens>& cursor, int64_t batch, int head, int group) {
    Scores scores, grads, text_grads;
    clear_unused(scores), clear_unused(grads), clear_unused(text_grads);
    score(scores, grads, rows, cursor, group);
    if (chunks() == 1) {
      add_delta(scores, grads, rows, cursor.terms().keys);
      finish_delta(rows, batch, head);
    }
    differentiate(scores, grads, rows, cursor.terms().keys);
    Cursor<Tokens> keys = cursor;
    cursor.advance();
    cursor.wait();
    subtract_delta(scores, grads, cursor.terms().grads);
    apply_dropout(scores, rows, cursor.terms().grads.dropout_keys);
    begin(text_grads);  // not before: registers are scarce
    multiply_transposed<Element, Traits::kUsed>(text_grads, ptx::shared_address(shared.rows[group]), cursor.tile());
    finish(text_grads);
    add_text(scores, grads, text_grads, cursor.terms().grads);
    const Packed<Element, kChunk> score_grads(grads), text_weights(scores);
    begin(output);
    multiply(output, score_grads, keys.tile());
    multiply(output, text_weights, cursor.tile());
    ptx::wgmma_wait<1>();
    keys.release();
    finish(output);
    cursor.release();
  }

  // Products leave them alone, and nothing may come of them.
  __device__ __forceinline__ static void clear_unused(Scores& scores) {
#pragma unroll
    for (int index = Traits::kUsed / 2; index < kChunk / 2; ++index) {
      scores.values[index] = 0;
    }
  }

  // The scores of a chunk, and the gradients of its image weights as they were before dropout. Leaves the cursor at the
  // keys.
  __device__ __forceinline__ void score(
      Scores& scores, Scores& grads, const Rows& rows, Cursor<Tokens>& cursor, int group) {
    Cursor<Tokens> values = cursor;
    values.wait();
    begin(grads);
    multiply_transposed<Element, Traits::kUsed>(grads, ptx::shared_address(shared.grad_y[group]), values.tile());
    cursor.advance();
    cursor.wait();
    begin(scores);
    multiply_transposed<Element, Traits::kUsed>(scores, ptx::shared_address(shared.rows[group]), cursor.tile());
    finish<1>(grads);
    values.release();
    apply_dropout(grads, rows, cursor.terms().keys.dropout_keys);
    finish(scores);
  }

  __device__ __forceinline__ void apply_dropout(Scores& values, const Rows& rows, const uint32_t (&keys)[kChunk]) {
    if (p.dropout.active()) {
      values.for_each([&](float& value, int i, int column) { value *= p.dropout.factor(keys[column], rows.row[i]); });
    }
  }

  __device__ __forceinline__ void add_delta(Scores& scores, Scores& grads, Rows& rows, const KeyTerms& terms) {
    for_each(
        [&](int i, int column, float score, float grad) {
          const int index = Columns::softmax_of(i, column);
          rows.delta[index] += exponential<Element>(score + terms.bias[column] - rows.lse[index]) * grad;
        },
        scores,
        grads);
  }

  __device__ __forceinline__ void finish_delta(Rows& rows, int64_t batch, int head) {
    Columns::reduce(rows.delta, Sum{});
    Columns::for_each_softmax([&](int index, int i, int k) {
      const int64_t place = place_of(rows, batch, head, i, k);
      if (Columns::speaks() && place >= 0) {
        p.image_delta[place] = rows.delta[index];
      }
    });
  }

  // Gradients of the image's weights become those of the scores, and scores become weights of the text.
  __device__ __forceinline__ void differentiate(Scores& scores,
                                                Scores& grads,
                                                const Rows& rows,
                                                const KeyTerms& terms) {
    for_each(
        [&](int i, int column, float& score, float& grad) {
          const int index = Columns::softmax_of(i, column);
          grad = exponential<Element>(score + terms.bias[column] - rows.lse[index]) * (grad - rows.delta[index]);
          score = exponential<Element>(score + rows.hidden[i] - terms.lse[column]);
        },
        scores,
        grads);
  }

  // The text direction of the same, before the dropout of its weights and after it.
  __device__ __forceinline__ void subtract_delta(Scores& weights, Scores& score_grads, const GradTerms& terms) {
    for_each([&](int, int column, float weight, float& grad) { grad -= weight * terms.delta[column]; },
             weights,
             score_grads);
  }
  __device__ __forceinline__ void add_text(Scores& weights,
                                           Scores& score_grads,
                                           Scores& weight_grads,
                                           const GradTerms& terms) {
    for_each(
        [&](int, int column, float weight, float& grad, float weight_grad) {
          grad += weight * (weight_grad + terms.grad_mass[column]);
        },
        weights,
        score_grads,
        weight_grads);
  }

  __device__ __forceinline__ void store_prompts(Fragment<kWidth>& output, const RowTile& tile, int group) {
    const int first = group * kGroupRows + row_of(0), rows = tile.count - first, width = p.shape.width;
    float* target = p.grad_prompts + (tile.batch * p.shape.prompts + tile.first + first) * width;
    output.for_each_pair([&](float a, float b, int i, int column) {
      if (8 * i < rows && column < width) {
        store_pair(target + 8 * i * width + column, a, b);
      }
    });
  }
};

template <class Traits>
__global__ void SDPT_EXT_HOPPER_BOUNDS
image_backward(const __grid_constant__ ImageBackwardParams<typename Traits::Element> params) {
#ifdef SDPT_EXT_HOPPER
  run_warpgroups(ImageBackward<Traits>{params, shared_memory<typename ImageBackward<Traits>::Memory>()});
#endif
}

}  // namespace sdpt_ext::cuda::hopper
