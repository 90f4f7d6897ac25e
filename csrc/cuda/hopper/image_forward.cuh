// The image direction of bi_attention on a Hopper's tensor cores; see ../bi_attention_image_forward.cuh for the maths.
//
// A block holds two tiles of 64 image rows, one per consuming warpgroup, while the producer brings the keys and the
// values of one head after another. All tokens of a head are scored before its values come: in chunks, of which all
// but the last are kept as elements scaled to their own maxima. Normalised, they meet the values as operands in
// registers, so that one accumulator sums over heads and never needs rescaling.
#pragma once

#include "../bi_attention_image_forward.cuh"
#include "pipeline.cuh"

namespace sdpt_ext::cuda::hopper {

template <typename Element_, int kChunk_, int kChunks_>
struct ImageTraits {
  using Element = Element_;
  static constexpr int kChunk = kChunk_;    // tokens that are scored at once
  static constexpr int kChunks = kChunks_;  // that hold all tokens of a head
  static constexpr int kRows = hopper::kRows, kWidth = hopper::kWidth, kThreads = hopper::kThreads;
};

template <typename Element>
struct ImageForwardParams : cuda::ImageForwardParams<Element> {
  CUtensorMap x_map, y_map;           // (B, N, D) in boxes of 64 rows
  CUtensorMap keys_map, values_map;  // (B * H, T, D) in boxes of a chunk
};

template <class Traits>
struct ImageForward {
  using Element = typename Traits::Element;
  using Params = ImageForwardParams<Element>;
  static constexpr int kChunk = Traits::kChunk, kChunks = Traits::kChunks;
  static constexpr int kSlot = kImageSlot<Traits>;

  struct TokenTerms {
    float bias[kChunk];  // of the scores
    uint32_t dropout_keys[kChunk];
  };
  using Tokens = Ring<Element, kChunk, 6, TokenTerms>;

  struct Memory {
    alignas(1024) Element x[kConsumers][kGroupRows * kWidth];
    alignas(1024) Tokens tokens;
    Residence residence;  // of x
    float maxima[kConsumers][kChunks][kGroupRows];  // that each chunk was scaled to: no registers are left for them
  };

  // The softmax of a row as far as its chunks are scored.
  struct State {
    float maximum[kRowsPerThread], sum[kRowsPerThread];
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
          load_tile(ptx::shared_address(shared.x[group]), kGroupTileBytes, &p.x_map, first + group * kGroupRows, batch,
                    barrier);
        });
      }
      parity ^= 1;
      for (int head = segment.begin; head < segment.end; ++head) {
        load_tokens(cursor, batch * p.shape.heads + head);
      }
    });
  }

  // head counts over the whole batch.
  __device__ __forceinline__ void load_tokens(Cursor<Tokens>& cursor, int head) {
    const int tokens = p.shape.tokens;
#pragma unroll 1  // the producer has few registers
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      cursor.fill(&p.keys_map, chunk * kChunk, head, kChunk, [&](TokenTerms& terms, int i) {
        const int token = chunk * kChunk + i, position = head * tokens + token;
        terms.bias[i] = token < tokens ? p.key_bias[position] : -kInfinity;
        terms.dropout_keys[i] = p.dropout.key(kImage, position, p.shape.batch * p.shape.heads * tokens);
      });
    }
#pragma unroll 1  // the producer has few registers
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      cursor.fill(&p.values_map, chunk * kChunk, head);
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
      output.clear();
      for (int head = segment.begin; head < segment.end; ++head) {
        attend(output, cursor, int64_t{batch} * p.shape.heads + head, first, group);
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

  // Adds one head to the output. head counts over the whole batch.
  __device__ __forceinline__ void attend(
      Fragment<kWidth>& output, Cursor<Tokens>& cursor, int64_t head, int first, int group) {
    const uint32_t x = ptx::shared_address(shared.x[group]);
    State state;
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      state.maximum[i] = -kInfinity, state.sum[i] = 0;
    }
    Fragment<kChunk> scores;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      cursor.wait();
      begin(scores);
      multiply_transposed<Element>(scores, x, cursor.tile());
      finish(scores);
      exponentiate(scores, state, cursor, first);
      if (chunk < kChunks - 1) {
        keep(scores, state, chunk, shared.maxima[group][chunk]);
      }
      cursor.release();
    }
    normalise(scores, state, head, first, group);
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
    float maximum[kRowsPerThread] = {state.maximum[0], state.maximum[1]};
    scores.for_each([&](float& score, int i, int column) {
      score += bias[column];
      maximum[i] = fmaxf(maximum[i], score);
    });
    reduce_rows(maximum, Maximum{});
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      state.sum[i] *= exponential<Element>(state.maximum[i] - finite(maximum[i]));
      state.maximum[i] = maximum[i];
    }
    scores.for_each([&](float& score, int i, int) {
      score = exponential<Element>(score - finite(maximum[i]));
      state.sum[i] += score;
    });
    if (p.dropout.active()) {
      const uint32_t* keys = cursor.terms().dropout_keys;
      scores.for_each([&](float& weight, int i, int column) {
        weight *= p.dropout.factor(keys[column], first + row_of(i));
      });
    }
  }

  __device__ __forceinline__ void keep(
      Fragment<kChunk>& scores, State& state, int chunk, float (&maxima)[kGroupRows]) {
    const float one[kRowsPerThread] = {1.0f, 1.0f};
    state.weights[chunk].set(scores, one);
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      if (speaks_for_row()) {
        maxima[row_of(i)] = state.maximum[i];  // the release of the chunk shows it to the row's other threads
      }
    }
  }

  // Brings all chunks to the scale of the whole softmax and writes its log-sum-exp.
  __device__ __forceinline__ void normalise(Fragment<kChunk>& scores, State& state, int64_t head, int first, int group) {
    reduce_rows(state.sum, Sum{});
    float inverse[kRowsPerThread];
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      inverse[i] = inverse_or_zero(state.sum[i]);
      const int row = first + row_of(i);
      if (speaks_for_row() && row < p.shape.image) {
        p.lse[head * p.shape.image + row] = log_sum_exp(state.maximum[i], state.sum[i]);
      }
    }
    state.weights[kChunks - 1].set(scores, inverse);
#pragma unroll
    for (int chunk = 0; chunk + 1 < kChunks; ++chunk) {
      float factor[kRowsPerThread];
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        const float maximum = shared.maxima[group][chunk][row_of(i)];
        factor[i] = exponential<Element>(maximum - finite(state.maximum[i])) * inverse[i];
      }
      state.weights[chunk].scale(factor);
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
