// Gradient of the image rows and of the prompts: through the scores of both directions, and as what the text gathers.
//
// One block holds a tile of rows and their output gradients, as in forward; the scores are recomputed from the saved
// log-sum-exps. Prompts are one more tile, without an output and so without a gradient of it.
#pragma once

#include "bi_attention.cuh"
#include "merge.cuh"
#include "slices.cuh"

namespace sdpt_ext::cuda {

template <typename Element>
struct ImageBackwardParams {
  using Number = NumberOf<Element>;

  Sizes shape;
  Work work;  // a tile per (batch, kRows image rows or prompts), a step per heads_of_step
  Dropout<Number> dropout;
  const Element *x, *prompts, *grad_y;
  const bool* visible;     // (B, N) or null
  const Number* image_lse;  // (B, H, N)
  TextTerms<Number> text;
  TextOperand<Element> operands[5];  // deep: keys, values, grad_u; wide: keys, grad_u
  Element* grad_x;
  Number* grad_prompts;  // (B, K, D)
  Number* image_delta;   // (B, H, N): gradients of the image's weights times the weights
  Number* partial;       // slots of (kRows, kWidth)
};

// Which rows a tile holds.
struct RowTile {
  int64_t batch;
  int first;  // of the image or of the prompts
  int count;
  bool prompt;

  __device__ RowTile(const Sizes& shape, const Work& work, int rows, int64_t tile) {
    const int64_t per_sample = work.tiles / shape.batch;
    const int index = static_cast<int>(tile % per_sample), image_tiles = ceil_div(shape.image, rows);
    batch = tile / per_sample;
    prompt = index >= image_tiles;
    first = (prompt ? index - image_tiles : index) * rows;
    count = min(rows, (prompt ? shape.prompts : shape.image) - first);
  }
};

// Numbers of a partial result.
template <class Traits>
constexpr int kImageGradSlot = Traits::kRows * Traits::kWidth;

template <class Traits>
struct ImageBackward {
  using Element = typename Traits::Element;
  using Number = NumberOf<Element>;
  using Params = ImageBackwardParams<Element>;
  using Stream = SliceStream<Traits, 3, 2, 2>;
  using Scores = Accumulator<Traits::kTokens, Number>;
  using Output = Accumulator<Traits::kWidth, Number>;
  using Operand = Tile<Element, Traits::kWidth>;
  using Weights = Tile<Element, Traits::kTokens>;
  static constexpr int kRows = Traits::kRows, kSlot = kImageGradSlot<Traits>;

  struct Memory {
    alignas(128) Element x[kRows * Traits::kWidth];
    alignas(128) Element grad_y[kRows * Traits::kWidth];
    alignas(128) Element score_grads[kRows * Traits::kTokens];
    alignas(128) Element text_weights[kRows * Traits::kTokens];
    alignas(128) Element stages[Stream::kStages * Stream::kStage];
    alignas(16) TextTerm<Number> terms[Traits::kTokens];
    DropoutKeys dropout_keys[Traits::kTokens];
    Number deltas[kWarpColumns * kRows];
  };

  const Params& p;
  Memory& shared;
  Stream stream;
  // Of the rows that a thread holds elements of.
  Number hidden[kRowsOfThread];  // 0, or -infinity where the text does not see the row
  int row[kRowsOfThread];       // prompt k counts as row N + k

  __device__ ImageBackward(const Params& params, Memory& memory)
      : p(params), shared(memory), stream(memory.stages, params.operands, params.shape.tokens, params.shape.width) {}

  __device__ __forceinline__ void run(const Segment& segment) {
    const RowTile tile(p.shape, p.work, kRows, segment.tile);
    const int width = p.shape.width;
    const int64_t offset = (tile.batch * p.shape.image + tile.first) * width;
    const Element* rows = tile.prompt ? p.prompts + int64_t{tile.first} * width : p.x + offset;
    const Operand x{shared.x}, grad_y{shared.grad_y};
    __syncthreads();  // the last tile is written out
    load_tile<kRows, Traits::kThreads>(x, Rows<Element>{rows, tile.count, width}, width);
    load_tile<kRows, Traits::kThreads>(grad_y, Rows<Element>{p.grad_y + offset, tile.prompt ? 0 : tile.count, width},
                                       width);
    const HeadRange heads(segment, p.shape);
    stream.start(tile.batch * p.shape.heads + heads.begin, heads.end - heads.begin);
    locate_rows(tile);
    Output output;
    output.clear();
    for (int head = heads.begin; head < heads.end; ++head) {
      attend(output, tile.batch * p.shape.heads + head, tile);
    }
    if (segment.slot >= 0) {
      store_partial(output, p.partial + segment.slot * kSlot);
    } else if (tile.prompt) {
      store_prompts(output, tile);
    } else {
      const auto row_of = [&](int i) { return p.grad_x + offset + int64_t{i} * width; };
      store_rows<Traits::kThreads>(output, x, tile.count, row_of, width);
    }
  }

  __device__ __forceinline__ void locate_rows(const RowTile& tile) {
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const int own = row_of_thread(i), place = tile.first + own;
      const bool masked = !tile.prompt && p.visible != nullptr && own < tile.count &&
                          !p.visible[tile.batch * p.shape.image + place];
      hidden[i] = own >= tile.count || masked ? -kInfinity : Number(0);
      row[i] = tile.prompt ? p.shape.image + place : place;
    }
  }

  // Adds what flows back through one head. head counts over the whole batch.
  __device__ __forceinline__ void attend(Output& output, int64_t head, const RowTile& tile) {
    const Operand x{shared.x}, grad_y{shared.grad_y};
    const Weights score_grads{shared.score_grads}, text_weights{shared.text_weights};
    const int chunks = stream.chunks();
    Number lse[kRowsOfThread], delta[kRowsOfThread] = {};
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const bool exists = !tile.prompt && row_of_thread(i) < tile.count;
      lse[i] = exists ? p.image_lse[head * p.shape.image + row[i]] : kInfinity;
    }
    Scores scores;
    for (int visit = 0; visit < stream.visits(); ++visit) {
      load_text(head, visit % chunks);
      multiply_deep(scores, x);
      store_weights(scores, lse);
      multiply_deep(scores, grad_y);
      if (p.dropout.active()) {
        scores.for_each([&](Number& grad, int i, int column) {
          grad *= p.dropout.factor(shared.dropout_keys[column].image, row[i]);
        });
      }
      if (visit < chunks) {
        add_delta(scores, delta);
      }
      if (visit == chunks - 1) {
        reduce_rows<kRows>(delta, shared.deltas, Sum{});
        store_delta(delta, head, tile);
      }
      if (stream.is_last_sweep(visit)) {
        store_image_grads(scores, delta);
        multiply_deep(scores, x);
        add_text_grads(scores);
        multiply_wide(output, score_grads, visit % chunks);
        multiply_wide(output, text_weights, visit % chunks);
      }
    }
  }

  __device__ __forceinline__ void load_text(int64_t head, int chunk) {
    __syncthreads();  // the last chunk is done with
    for (int i = threadIdx.x; i < Traits::kTokens; i += Traits::kThreads) {
      const int token = chunk * Traits::kTokens + i;
      shared.terms[i] = p.text.load(p.shape, head, token);
      shared.dropout_keys[i] = DropoutKeys::of(p.dropout, p.shape, head * p.shape.tokens + token);
    }
  }

  __device__ __forceinline__ void multiply_deep(Scores& scores, Operand rows) {
    scores.clear();
    for (int slice = 0; slice < stream.deep_slices(); ++slice) {
      multiply_transposed<Traits::kDepth>(scores, rows, slice * Traits::kDepth, stream.next_deep());
    }
  }

  __device__ __forceinline__ void multiply_wide(Output& output, Weights weights, int chunk) {
    for (int slice = 0; slice < stream.wide_slices(chunk); ++slice) {
      multiply<Traits::kStep>(output, weights, slice * Traits::kStep, stream.next_wide());
    }
  }

  // The weights of both directions, each where its gradient will stand: a thread only meets its own elements there.
  __device__ __forceinline__ void store_weights(Scores& scores, const Number (&lse)[kRowsOfThread]) {
    scores.for_each_pair([&](Number& a, Number& b, int i, int column) {
      const TextTerm<Number> first = shared.terms[column], second = shared.terms[column + 1];
      store_pair(Weights{shared.score_grads}.at(row_of_thread(i), column),
                 exponential<Element>(a + first.bias - lse[i]), exponential<Element>(b + second.bias - lse[i]));
      store_pair(Weights{shared.text_weights}.at(row_of_thread(i), column),
                 exponential<Element>(a + hidden[i] - first.lse), exponential<Element>(b + hidden[i] - second.lse));
    });
  }

  __device__ __forceinline__ void add_delta(Scores& weight_grads, Number (&delta)[kRowsOfThread]) {
    weight_grads.for_each_pair([&](Number& a, Number& b, int i, int column) {
      const auto weight = load_pair(Weights{shared.score_grads}.at(row_of_thread(i), column));
      delta[i] += weight.x * a + weight.y * b;
    });
  }

  __device__ __forceinline__ void store_delta(const Number (&delta)[kRowsOfThread], int64_t head, const RowTile& tile) {
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      if (speaks_for_row() && !tile.prompt && row_of_thread(i) < tile.count) {
        p.image_delta[head * p.shape.image + row[i]] = delta[i];
      }
    }
  }

  __device__ __forceinline__ void store_image_grads(Scores& weight_grads, const Number (&delta)[kRowsOfThread]) {
    weight_grads.for_each_pair([&](Number& a, Number& b, int i, int column) {
      Element* place = Weights{shared.score_grads}.at(row_of_thread(i), column);
      const auto weight = load_pair(place);
      store_pair(place, weight.x * (a - delta[i]), weight.y * (b - delta[i]));
    });
  }

  // Adds the text direction to the gradients of the scores, and applies its dropout to its weights.
  __device__ __forceinline__ void add_text_grads(Scores& weight_grads) {
    weight_grads.for_each_pair([&](Number& a, Number& b, int i, int column) {
      Element* grad_place = Weights{shared.score_grads}.at(row_of_thread(i), column);
      Element* weight_place = Weights{shared.text_weights}.at(row_of_thread(i), column);
      const TextTerm<Number> first = shared.terms[column], second = shared.terms[column + 1];
      const auto weight = load_pair(weight_place), grad = load_pair(grad_place);
      auto factor = pair_of(Number(1), Number(1));
      if (p.dropout.active()) {
        factor.x = p.dropout.factor(shared.dropout_keys[column].text, row[i]);
        factor.y = p.dropout.factor(shared.dropout_keys[column + 1].text, row[i]);
      }
      store_pair(grad_place, grad.x + weight.x * (factor.x * (a + first.grad_mass) - first.delta),
                 grad.y + weight.y * (factor.y * (b + second.grad_mass) - second.delta));
      store_pair(weight_place, weight.x * factor.x, weight.y * factor.y);
    });
  }

  __device__ __forceinline__ void store_prompts(Output& output, const RowTile& tile) {
    output.for_each_pair([&](Number& a, Number& b, int i, int column) {
      if (row_of_thread(i) < tile.count && column < p.shape.width) {
        const int64_t prompt = tile.batch * p.shape.prompts + tile.first + row_of_thread(i);
        store_pair(p.grad_prompts + prompt * p.shape.width + column, a, b);
      }
    });
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads)
    image_backward(const __grid_constant__ ImageBackwardParams<typename Traits::Element> params) {
  using Kernel = ImageBackward<Traits>;
  Kernel kernel(params, shared_memory<typename Kernel::Memory>());
  for_each_segment(params.work, [&](const Segment& segment) { kernel.run(segment); });
}

// Adds up the tiles that several blocks shared. Grid: (boundaries between blocks, kRows / kMergeRows).
template <class Traits>
__global__ void __launch_bounds__(kMergeThreads)
    merge_image_backward(const __grid_constant__ ImageBackwardParams<typename Traits::Element> p) {
  using Number = NumberOf<typename Traits::Element>;
  SharedTile shared;
  if (!find_shared_tile(p.work, blockIdx.x, shared)) {
    return;
  }
  const RowTile tile(p.shape, p.work, Traits::kRows, shared.tile);
  const int row = merge_row(), width = p.shape.width;
  if (row >= tile.count) {
    return;
  }
  const auto sum = [&](int column) {
    return sum_slots(shared, p.partial + row * Traits::kWidth + column, kImageGradSlot<Traits>,
                     [](int64_t) { return Number(1); });
  };
  if (tile.prompt) {
    merge_columns(p.grad_prompts + (tile.batch * p.shape.prompts + tile.first + row) * width, width, sum);
  } else {
    merge_columns(p.grad_x + (tile.batch * p.shape.image + tile.first + row) * width, width, sum);
  }
}

}  // namespace sdpt_ext::cuda
