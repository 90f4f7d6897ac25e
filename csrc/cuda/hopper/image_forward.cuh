// The image direction of bi_attention on a Hopper's tensor cores; see ../bi_attention_image_forward.cuh for the maths.
//
// A block holds two tiles of 64 image rows, one per consuming warpgroup, while the producer brings the keys and the
// values of one head after another, or of all at once where texts are short. All tokens of a head are scored before its
// values come: in chunks, of which all but the last are kept as elements scaled to their own maxima. Normalised, they
// meet the values as operands in registers, so that one accumulator sums over heads and never needs rescaling.
#pragma once

#include "../bi_attention_image_forward.cuh"
#include "head_columns.cuh"
#include "pipeline.cuh"

namespace sdpt_ext::cuda::hopper {

template <typename Element_, int kHeads_, int kTokens_, int kChunks_>
struct ImageTraits {
  using Element = Element_;
  static constexpr int kHeads = kHeads_;    // at once: 1, or 4 or 8 that are all there are
  static constexpr int kTokens = kTokens_;  // of a chunk
  static constexpr int kChunks = kChunks_;  // that hold all tokens
  static constexpr int kRows = hopper::kRows, kWidth = hopper::kWidth, kThreads = hopper::kThreads;
};

template <typename Element>
struct ImageForwardParams : cuda::ImageForwardParams<Element> {
  CUtensorMap x_map, y_map;          // (B, N, D) in boxes of 64 rows
  CUtensorMap keys_map, values_map;  // (B, H, T, D) in boxes of a chunk
};

template <class Traits>
struct ImageForward {
  using Element = typename Traits::Element;
  using Params = ImageForwardParams<Element>;
  static constexpr int kHeads = Traits::kHeads, kTokens = Traits::kTokens, kChunks = Traits::kChunks;
  static constexpr int kChunk = kHeads * kTokens;
  static constexpr int kSlot = kImageSlot<Traits>;
  using Columns = HeadColumns<kHeads>;
  static constexpr int kSoftmaxes = Columns::kSoftmaxes;

  struct TokenTerms {
    float bias[kChunk];  // of the scores
    uint32_t dropout_keys[kChunk];
  };
  // As many stages as fit beside the image rows.
  static constexpr int kStages = kChunk > 80 ? 2 : kChunk > 48 ? 3 : 6;
  using Tokens = Ring<Element, kChunk, kStages, TokenTerms>;

  struct Nothing {};
  using Maxima = float[kChunks - (kChunks > 1)][Columns::kHeadsOfThread][kGroupRows][Columns::kSpeakers];

  struct Memory {
    alignas(1024) Element x[kConsumers][kGroupRows * kWidth];
    alignas(1024) Tokens tokens;
    Residence residence;  // of x
    // That each chunk but the last was scaled to: no registers are left for them.
    std::conditional_t<kChunks == 1, Nothing, Maxima> maxima[kConsumers];
  };

  // The softmaxes of a thread's rows and heads as far as their chunks are scored.
  struct State {
    float maximum[kSoftmaxes], sum[kSoftmaxes];
    Packed<Element, kChunk> weights[kChunks];
  };

  const Params& p;
  Memory& shared;

  __device__ __forceinline__ void init() {
    shared.residence.init();
    shared.tokens.init();
  }

  // ---- the producing warpgroup

  __device__ __forceinline__ void produce() {
    Cursor<Tokens> cursor(shared.tokens);
    uint32_t parity = 1;
    for_each_segment(p.work, [&](const Segment& segment) {
      const int batch = static_cast<int>(segment.tile / p.tiles_per_image());
      const int first = static_cast<int>(segment.tile % p.tiles_per_image()) * kRows;
      for (int group = 0; group < kConsumers; ++group) {
        shared.residence.fill(group, parity, kGroupTileBytes, [&](uint32_t barrier) {
          const Box rows{&p.x_map, first + group * kGroupRows, batch};
          rows.load(ptx::shared_address(shared.x[group]), kGroupTileBytes, barrier);
        });
      }
      parity ^= 1;
      const HeadRange heads(segment, p.shape);
      for (int head = heads.begin; head < heads.end; head += kHeads) {
        load_tokens(cursor, batch, head);
      }
    });
  }

  __device__ __forceinline__ void load_tokens(Cursor<Tokens>& cursor, int batch, int first_head) {
    const int tokens = p.shape.tokens, heads = p.shape.heads;
#pragma unroll 1  // the producer has few registers
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const HeadBox box{&p.keys_map, first_head, chunk * kTokens, batch};
      cursor.fill(box, kChunk, [&](TokenTerms& terms, int i) {
        const int token = chunk * kTokens + i / kHeads, head = first_head + i % kHeads;
        const int position = (batch * heads + head) * tokens + token;
        terms.bias[i] = token < tokens && head < heads ? p.key_bias[position] : -kInfinity;
        terms.dropout_keys[i] = p.dropout.key(kImage, position, p.shape.batch * heads * tokens);
      });
    }
#pragma unroll 1  // the producer has few registers
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      cursor.fill(HeadBox{&p.values_map, first_head, chunk * kTokens, batch});
    }
  }

  // ---- a consuming warpgroup

  __device__ __forceinline__ void consume(int group) {
    Cursor<Tokens> cursor(shared.tokens);
    uint32_t parity = 0;
    for_each_segment(p.work, [&](const Segment& segment) {
      const int batch = static_cast<int>(segment.tile / p.tiles_per_image());
      const int first = static_cast<int>(segment.tile % p.tiles_per_image()) * kRows + group * kGroupRows;
      wait_for_phase(shared.residence.full[group], parity);
      parity ^= 1;
      Fragment<kWidth> output;
      if constexpr (kHeads == 1) {
        output.clear();
      }
      const HeadRange heads(segment, p.shape);
      for (int head = heads.begin; head < heads.end; head += kHeads) {
        attend(output, cursor, batch, head, first, group);
      }
      if (segment.slot < 0) {
        ptx::barrier_sync(1 + group, kGroupThreads);  // all warps are done with x, whose place the result takes
        store_tile<Element>(output, shared.x[group], &p.y_map, first, batch, 1 + group);
      } else {
        store_partial(output, p.partial + segment.slot * kSlot + group * kGroupRows * kWidth);
      }
      arrive(shared.residence.empty[group]);
    });
    ptx::wait_for_stores();
  }

  // Adds what kHeads heads see to the output.
  __device__ __forceinline__ void attend(
      Fragment<kWidth>& output, Cursor<Tokens>& cursor, int batch, int first_head, int first, int group) {
    const uint32_t x = ptx::shared_address(shared.x[group]);
    State state;
#pragma unroll
    for (int index = 0; index < kSoftmaxes; ++index) {
      state.maximum[index] = -kInfinity, state.sum[index] = 0;
    }
    Fragment<kChunk> scores;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      cursor.wait();
      begin(scores);
      multiply_transposed<Element>(scores, x, cursor.tile());
      finish(scores);
      exponentiate(scores, state, cursor, first);
      if constexpr (kChunks > 1) {
        if (chunk < kChunks - 1) {
          keep(scores, state, chunk, group);
        }
      }
      cursor.release();
    }
    normalise(scores, state, batch, first_head, first, group);
    if constexpr (kHeads > 1) {
      output.clear();  // the only visit: until here its registers serve the scores
    }
    begin(output);
    Cursor<Tokens> used = cursor;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      cursor.wait();
      ptx::wgmma_fence();
      multiply(output, state.weights[chunk], cursor.tile());
      cursor.advance();
      if (chunk > 0) {
        ptx::wgmma_wait<1>();
        used.release();
      }
    }
    finish(output);
    used.release();
  }

  // Logits become exp(logit - the largest so far), or 0 where dropped; what is dropped still counts in the sum.
  __device__ __forceinline__ void exponentiate(
      Fragment<kChunk>& scores, State& state, const Cursor<Tokens>& cursor, int first) {
    const float* bias = cursor.terms().bias;
    float maximum[kSoftmaxes];
#pragma unroll
    for (int index = 0; index < kSoftmaxes; ++index) {
      maximum[index] = state.maximum[index];
    }
    scores.for_each([&](float& score, int i, int column) {
      score += bias[column];
      maximum[Columns::softmax_of(i, column)] = fmaxf(maximum[Columns::softmax_of(i, column)], score);
    });
    Columns::reduce(maximum, Maximum{});
#pragma unroll
    for (int index = 0; index < kSoftmaxes; ++index) {
      state.sum[index] *= exponential<Element>(state.maximum[index] - finite(maximum[index]));
      state.maximum[index] = maximum[index];
    }
    scores.for_each([&](float& score, int i, int column) {
      score = exponential<Element>(score - finite(maximum[Columns::softmax_of(i, column)]));
      state.sum[Columns::softmax_of(i, column)] += score;
    });
    if (p.dropout.active()) {
      const uint32_t* keys = cursor.terms().dropout_keys;
      scores.for_each([&](float& weight, int i, int column) {
        weight *= p.dropout.factor(keys[column], first + row_of(i));
      });
    }
  }

  __device__ __forceinline__ void keep(Fragment<kChunk>& scores, State& state, int chunk, int group) {
    state.weights[chunk] = Packed<Element, kChunk>(scores);
    Columns::for_each_softmax([&](int index, int i, int k) {
      if (Columns::speaks()) {
        // The release of the chunk shows it to the row's other threads.
        shared.maxima[group][chunk][k][row_of(i)][Columns::speaker()] = state.maximum[index];
      }
    });
  }

  // Brings all chunks to the scale of the whole softmax and writes its log-sum-exp.
  __device__ __forceinline__ void normalise(
      Fragment<kChunk>& scores, State& state, int batch, int first_head, int first, int group) {
    Columns::reduce(state.sum, Sum{});
    float inverse[kSoftmaxes];
    Columns::for_each_softmax([&](int index, int i, int k) {
      inverse[index] = inverse_or_zero(state.sum[index]);
      const int row = first + row_of(i), head = first_head + Columns::head_of(k);
      if (Columns::speaks() && row < p.shape.image && head < p.shape.heads) {
        p.lse[(int64_t{batch} * p.shape.heads + head) * p.shape.image + row] =
            log_sum_exp(state.maximum[index], state.sum[index]);
      }
    });
    state.weights[kChunks - 1].set(scores, [&](int i, int k) { return inverse[Columns::softmax_of(i, k)]; });
    if constexpr (kChunks > 1) {
      rescale_kept(state, inverse, group);
    }
  }

  __device__ __forceinline__ void rescale_kept(State& state, const float (&inverse)[kSoftmaxes], int group) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks - 1; ++chunk) {
      float factor[kSoftmaxes];
      Columns::for_each_softmax([&](int index, int i, int k) {
        const float maximum = shared.maxima[group][chunk][k][row_of(i)][Columns::speaker()];
        factor[index] = exponential<Element>(maximum - finite(state.maximum[index])) * inverse[index];
      });
      state.weights[chunk].scale([&](int i, int k) { return factor[Columns::softmax_of(i, k)]; });
    }
  }
};

template <class Traits>
__global__ void SDPT_EXT_HOPPER_BOUNDS
    image_forward(const __grid_constant__ ImageForwardParams<typename Traits::Element> params) {
#ifdef SDPT_EXT_HOPPER
  run_warpgroups(ImageForward<Traits>{params, shared_memory<typename ImageForward<Traits>::Memory>()});
#endif
}

}  // namespace sdpt_ext::cuda::hopper
