// The image direction: y[n] = sum over heads of softmax_t(x[n] . keys[h, t] + key_bias[h, t]) values[h, t].
//
// One block holds a tile of image rows. The scores of a head against a chunk of tokens stay in registers; they are
// normalised before they meet the values, so that one accumulator sums over heads and never needs rescaling.
#pragma once

#include "bi_attention.cuh"
#include "merge.cuh"
#include "slices.cuh"

namespace sdpt_ext::cuda {

template <typename Element>
struct ImageForwardParams {
  using Number = NumberOf<Element>;

  Sizes shape;
  Work work;  // a tile per (batch, kRows image rows), a step per heads_of_step
  Dropout<Number> dropout;
  const Element* x;
  const Number* key_bias;
  TextOperand<Element> operands[2];  // keys, values
  Element* y;
  Number* lse;      // (B, H, N)
  Number* partial;  // slots of (kRows, kWidth)

  __device__ int tiles_per_image() const { return static_cast<int>(work.tiles / shape.batch); }
};

// Numbers of a partial result.
template <class Traits>
constexpr int kImageSlot = Traits::kRows * Traits::kWidth;

template <class Traits>
struct ImageForward {
  using Element = typename Traits::Element;
  using Number = NumberOf<Element>;
  using Params = ImageForwardParams<Element>;
  using Stream = SliceStream<Traits, 1, 1, 1>;
  using Scores = Accumulator<Traits::kTokens, Number>;
  using Output = Accumulator<Traits::kWidth, Number>;
  static constexpr int kSlot = kImageSlot<Traits>;

  struct Memory {
    alignas(128) Element x[Traits::kRows * Traits::kWidth];
    alignas(128) Element weights[Traits::kRows * Traits::kTokens];
    alignas(128) Element stages[Stream::kStages * Stream::kStage];
    Number bias[Traits::kTokens];
    uint32_t dropout_keys[Traits::kTokens];
    Number maxima[kWarpColumns * Traits::kRows];
    Number sums[kWarpColumns * Traits::kRows];
  };

  const Params& p;
  Memory& shared;
  Stream stream;

  __device__ ImageForward(const Params& params, Memory& memory)
      : p(params), shared(memory), stream(memory.stages, params.operands, params.shape.tokens, params.shape.width) {}

  __device__ __forceinline__ void run(const Segment& segment) {
    const int64_t batch = segment.tile / p.tiles_per_image();
    const int first = static_cast<int>(segment.tile % p.tiles_per_image()) * Traits::kRows;
    const int width = p.shape.width, rows = min(Traits::kRows, p.shape.image - first);
    const int64_t offset = (batch * p.shape.image + first) * width;
    const Tile<Element, Traits::kWidth> x{shared.x};
    __syncthreads();  // the last tile is written out
    load_tile<Traits::kRows, Traits::kThreads>(x, Rows<Element>{p.x + offset, rows, width}, width);
    const HeadRange heads(segment, p.shape);
    stream.start(batch * p.shape.heads + heads.begin, heads.end - heads.begin);
    Output output;
    output.clear();
    for (int head = heads.begin; head < heads.end; ++head) {
      attend(output, batch * p.shape.heads + head, first);
    }
    if (segment.slot < 0) {
      const auto row_of = [&](int row) { return p.y + offset + int64_t{row} * width; };
      store_rows<Traits::kThreads>(output, x, rows, row_of, width);
    } else {
      store_partial(output, p.partial + segment.slot * kSlot);
    }
  }

  // Adds one head to the output. head counts over the whole batch.
  __device__ __forceinline__ void attend(Output& output, int64_t head, int first) {
    const int chunks = stream.chunks();
    Scores scores;
    Number maximum[kRowsOfThread], sum[kRowsOfThread];
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      maximum[i] = -kInfinity, sum[i] = Number(0);
    }
    for (int visit = 0; visit < stream.visits(); ++visit) {
      compute_scores(scores, head, visit % chunks);
      if (visit < chunks) {
        raise_maximum(scores, maximum, sum);
      }
      exponentiate(scores, maximum);
      if (visit < chunks) {
        scores.for_each([&](Number& weight, int i, int) { sum[i] += weight; });
      }
      if (visit == chunks - 1) {
        reduce_rows<Traits::kRows>(sum, shared.sums, Sum{});
        store_lse(maximum, sum, head, first);
      }
      if (stream.is_last_sweep(visit)) {
        normalise(scores, sum, first);
        add_to_output(output, scores, visit % chunks);
      }
    }
  }

  __device__ __forceinline__ void add_to_output(Output& output, const Scores& scores, int chunk) {
    const Tile<Element, Traits::kTokens> weights{shared.weights};
    store(scores, weights);
    for (int slice = 0; slice < stream.wide_slices(chunk); ++slice) {
      multiply<Traits::kStep>(output, weights, slice * Traits::kStep, stream.next_wide());
    }
  }

  __device__ __forceinline__ void compute_scores(Scores& scores, int64_t head, int chunk) {
    for (int i = threadIdx.x; i < Traits::kTokens; i += Traits::kThreads) {
      const int token = chunk * Traits::kTokens + i;
      const int64_t position = head * p.shape.tokens + token;
      shared.bias[i] = token < p.shape.tokens ? p.key_bias[position] : -kInfinity;
      shared.dropout_keys[i] =
          p.dropout.key(kImage, position, p.shape.batch * p.shape.heads * p.shape.tokens);
    }
    scores.clear();
    const Tile<Element, Traits::kWidth> x{shared.x};
    for (int slice = 0; slice < stream.deep_slices(); ++slice) {
      multiply_transposed<Traits::kDepth>(scores, x, slice * Traits::kDepth, stream.next_deep());
    }
    scores.for_each([&](Number& score, int, int column) { score += shared.bias[column]; });
  }

  __device__ __forceinline__ void raise_maximum(Scores& scores,
                                                Number (&maximum)[kRowsOfThread],
                                                Number (&sum)[kRowsOfThread]) {
    Number largest[kRowsOfThread] = {maximum[0], maximum[1], maximum[2], maximum[3]};
    scores.for_each([&](Number& score, int i, int) { largest[i] = fmax(largest[i], score); });
    reduce_rows<Traits::kRows>(largest, shared.maxima, Maximum{});
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      sum[i] *= exponential<Element>(maximum[i] - finite(largest[i]));
      maximum[i] = largest[i];
    }
  }

  __device__ __forceinline__ void exponentiate(Scores& scores, const Number (&maximum)[kRowsOfThread]) {
    scores.for_each(
        [&](Number& score, int i, int) { score = exponential<Element>(score - finite(maximum[i])); });
  }

  __device__ __forceinline__ void normalise(Scores& scores, const Number (&sum)[kRowsOfThread], int first) {
    Number scale[kRowsOfThread];
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      scale[i] = inverse_or_zero(sum[i]);
    }
    scores.for_each([&](Number& weight, int i, int) { weight *= scale[i]; });
    if (p.dropout.active()) {
      scores.for_each([&](Number& weight, int i, int column) {
        weight *= p.dropout.factor(shared.dropout_keys[column], first + row_of_thread(i));
      });
    }
  }

  __device__ __forceinline__ void store_lse(const Number (&maximum)[kRowsOfThread],
                                            const Number (&sum)[kRowsOfThread],
                                            int64_t head,
                                            int first) {
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const int row = first + row_of_thread(i);
      if (speaks_for_row() && row < p.shape.image) {
        p.lse[head * p.shape.image + row] = log_sum_exp(maximum[i], sum[i]);
      }
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kTokens <= 32 ? 2 : 1)
    image_forward(const __grid_constant__ ImageForwardParams<typename Traits::Element> params) {
  using Kernel = ImageForward<Traits>;
  Kernel kernel(params, shared_memory<typename Kernel::Memory>());
  for_each_segment(params.work, [&](const Segment& segment) { kernel.run(segment); });
}

// Adds up the tiles that several blocks shared. Grid: (boundaries between blocks, kRows / kMergeRows).
template <class Traits>
__global__ void __launch_bounds__(kMergeThreads)
    merge_image_forward(const __grid_constant__ ImageForwardParams<typename Traits::Element> p) {
  using Number = NumberOf<typename Traits::Element>;
  SharedTile shared;
  if (!find_shared_tile(p.work, blockIdx.x, shared)) {
    return;
  }
  const int64_t batch = shared.tile / p.tiles_per_image();
  const int row = merge_row(), image_row = static_cast<int>(shared.tile % p.tiles_per_image()) * Traits::kRows + row;
  if (image_row < p.shape.image) {
    const Number* slots = p.partial + row * Traits::kWidth;
    merge_columns(p.y + (batch * p.shape.image + image_row) * p.shape.width, p.shape.width, [&](int column) {
      return sum_slots(shared, slots + column, kImageSlot<Traits>, [](int64_t) { return Number(1); });
    });
  }
}

}  // namespace sdpt_ext::cuda
