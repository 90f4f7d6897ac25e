// Gradients of keys, key_bias and values: a tile of text rows stays, image rows and their output gradients stream past.
#pragma once

#include "image_stream.cuh"
#include "merge.cuh"

namespace sdpt_ext::cuda {

template <typename Element>
struct TextBackwardParams {
  using Number = NumberOf<Element>;

  Sizes shape;
  Work work;  // a tile per (batch, kRows text rows), a step per image tile
  Dropout<Number> dropout;
  ImageOperand<Element> image;
  const Element *keys, *values, *grad_u;
  TextTerms<Number> text;
  Element *grad_keys, *grad_values;
  Number* grad_bias;
  Number* partial;  // slots of (kRows, kWidth) for keys, the same for values, kRows for the bias
};

// Numbers of a partial result.
template <class Traits>
constexpr int kTextGradSlot = Traits::kRows * (2 * Traits::kWidth + 1);

template <class Traits>
struct TextBackward {
  using Element = typename Traits::Element;
  using Number = NumberOf<Element>;
  using Params = TextBackwardParams<Element>;
  using Stream = ImageStream<Traits, true>;
  using Scores = Accumulator<Traits::kColumns, Number>;
  using Output = Accumulator<Traits::kWidth, Number>;
  using Operand = Tile<Element, Traits::kWidth>;
  using Weights = Tile<Element, Traits::kColumns>;
  static constexpr int kRows = Traits::kRows;
  static constexpr int kPlane = kRows * Traits::kWidth, kSlot = kTextGradSlot<Traits>;

  struct Memory {
    alignas(128) Element keys[kRows * Traits::kWidth];
    alignas(128) Element values[kRows * Traits::kWidth];
    alignas(128) Element grad_u[kRows * Traits::kWidth];
    alignas(128) Element score_grads[kRows * Traits::kColumns];
    alignas(128) Element image_weights[kRows * Traits::kColumns];
    typename Stream::Memory stream;
    alignas(16) TextTerm<Number> terms[kRows];
    DropoutKeys dropout_keys[kRows];
    Number bias_grads[kWarpColumns * kRows];
  };

  const Params& p;
  Memory& shared;
  Stream stream;
  int head_of_row[kRowsOfThread];  // of the thread's rows, counted from the first head of the tile

  __device__ TextBackward(const Params& params, Memory& memory)
      : p(params), shared(memory), stream(memory.stream, params.image, params.shape) {}

  __device__ int tiles_per_sample() const { return static_cast<int>(p.work.tiles / p.shape.batch); }

  __device__ __forceinline__ void run(const Segment& segment) {
    const int64_t batch = segment.tile / tiles_per_sample();
    const int first = static_cast<int>(segment.tile % tiles_per_sample()) * kRows;
    const int rows = min(kRows, p.shape.heads * p.shape.tokens - first);
    const int64_t token = batch * p.shape.heads * p.shape.tokens + first;
    start(segment, batch, first, rows);
    Output grad_keys, grad_values;
    grad_keys.clear();
    grad_values.clear();
    Number grad_bias[kRowsOfThread] = {};
    for (int item = segment.begin; item < segment.end; ++item) {
      visit(stream.next(), grad_keys, grad_values, grad_bias);
    }
    reduce_rows<kRows>(grad_bias, shared.bias_grads, Sum{});
    if (segment.slot < 0) {
      finish(grad_keys, grad_values, grad_bias, token, rows);
    } else {
      Number* slot = p.partial + segment.slot * kSlot;
      store_partial(grad_keys, slot);
      store_partial(grad_values, slot + kPlane);
      store_bias(grad_bias, slot + 2 * kPlane, kRows);
    }
  }

  __device__ __forceinline__ void start(const Segment& segment, int64_t batch, int first, int rows) {
    const int width = p.shape.width, tokens = p.shape.tokens;
    const int64_t head = batch * p.shape.heads, offset = (head * tokens + first) * width;
    const auto grad_of = [&](int row) -> const Element* {
      const int place = first + row, token = place % tokens;
      const bool exists = row < rows && token < p.shape.text;
      return exists ? p.grad_u + ((head + place / tokens) * p.shape.text + token) * width : nullptr;
    };
    __syncthreads();  // the last tile is written out
    load_tile<kRows, Traits::kThreads>(Operand{shared.keys}, Rows<Element>{p.keys + offset, rows, width}, width);
    load_tile<kRows, Traits::kThreads>(Operand{shared.values}, Rows<Element>{p.values + offset, rows, width}, width);
    load_tile<kRows, Traits::kThreads>(Operand{shared.grad_u}, grad_of, width);
    if (threadIdx.x < kRows) {
      const int place = first + threadIdx.x;
      const bool exists = static_cast<int>(threadIdx.x) < rows;
      shared.terms[threadIdx.x] =
          p.text.load(p.shape, head + place / tokens, exists ? place % tokens : tokens);
      shared.dropout_keys[threadIdx.x] = DropoutKeys::of(p.dropout, p.shape, head * tokens + place);
    }
    const int first_head = first / tokens, last_head = (first + rows - 1) / tokens;
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      head_of_row[i] = min((first + row_of_thread(i)) / tokens, last_head) - first_head;
    }
    stream.start(static_cast<int>(batch), segment.begin, segment.end, first_head, last_head - first_head + 1);
  }

  // Adds what flows back through one image tile.
  __device__ __forceinline__ void visit(const typename Stream::Item& image,
                                        Output& grad_keys,
                                        Output& grad_values,
                                        Number (&grad_bias)[kRowsOfThread]) {
    Scores scores, image_grads, text_grads;
    scores.clear();
    image_grads.clear();
    text_grads.clear();
    multiply_transposed<Traits::kWidth>(scores, Operand{shared.keys}, 0, image.rows);
    multiply_transposed<Traits::kWidth>(image_grads, Operand{shared.values}, 0, image.grads);
    multiply_transposed<Traits::kWidth>(text_grads, Operand{shared.grad_u}, 0, image.rows);
#pragma unroll
    for (int j = 0; j < Scores::kBlocks; ++j) {
#pragma unroll
      for (int i = 0; i < kRowsOfThread; ++i) {
        Number weight[2], grad[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const Gradient result = differentiate(image, i, Scores::column(j) + k, scores(i, j, k),
                                                image_grads(i, j, k), text_grads(i, j, k));
          weight[k] = result.image_weight, grad[k] = result.image + result.text;
          grad_bias[i] += result.image;
        }
        store_pair(Weights{shared.image_weights}.at(row_of_thread(i), Scores::column(j)), weight[0], weight[1]);
        store_pair(Weights{shared.score_grads}.at(row_of_thread(i), Scores::column(j)), grad[0], grad[1]);
      }
    }
    __syncthreads();
    multiply<Traits::kColumns>(grad_values, Weights{shared.image_weights}, 0, image.grads);
    multiply<Traits::kColumns>(grad_keys, Weights{shared.score_grads}, 0, image.rows);
  }

  struct Gradient {
    Number image, text;   // of the score, through either direction
    Number image_weight;  // after dropout
  };

  __device__ __forceinline__ Gradient differentiate(const typename Stream::Item& item,
                                                    int i,
                                                    int column,
                                                    Number score,
                                                    Number image_grad,
                                                    Number text_grad) {
    const TextTerm<Number> term = shared.terms[row_of_thread(i)];
    Number image_factor = Number(1), text_factor = Number(1);
    if (p.dropout.active()) {
      const DropoutKeys keys = shared.dropout_keys[row_of_thread(i)];
      image_factor = p.dropout.factor(keys.image, item.first + column);
      text_factor = p.dropout.factor(keys.text, item.first + column);
    }
    Number lse = kInfinity, delta = Number(0);  // prompts and rows past the end have no output
    if (column < item.count) {
      lse = item.lse[head_of_row[i]][column];
      delta = item.delta[head_of_row[i]][column];
    }
    const Number image_weight = exponential<Element>(score + term.bias - lse);
    const Number text_weight = exponential<Element>(score + item.hidden[column] - term.lse);
    Gradient result;
    result.image = image_weight * (image_factor * image_grad - delta);
    result.text = text_weight * (text_factor * (text_grad + term.grad_mass) - term.delta);
    result.image_weight = image_weight * image_factor;
    return result;
  }

  __device__ __forceinline__ void finish(const Output& grad_keys,
                                         const Output& grad_values,
                                         const Number (&grad_bias)[kRowsOfThread],
                                         int64_t token,
                                         int rows) {
    const int width = p.shape.width;
    const auto key_row = [&](int row) { return p.grad_keys + (token + row) * width; };
    const auto value_row = [&](int row) { return p.grad_values + (token + row) * width; };
    store_rows<Traits::kThreads>(grad_keys, Operand{shared.keys}, rows, key_row, width);
    store_rows<Traits::kThreads>(grad_values, Operand{shared.values}, rows, value_row, width);
    store_bias(grad_bias, p.grad_bias + token, rows);
  }

  __device__ __forceinline__ void store_bias(const Number (&grad_bias)[kRowsOfThread], Number* target, int rows) {
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      if (speaks_for_row() && row_of_thread(i) < rows) {
        target[row_of_thread(i)] = grad_bias[i];
      }
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads)
    text_backward(const __grid_constant__ TextBackwardParams<typename Traits::Element> params) {
  using Kernel = TextBackward<Traits>;
  Kernel kernel(params, shared_memory<typename Kernel::Memory>());
  for_each_segment(params.work, [&](const Segment& segment) { kernel.run(segment); });
}

// Adds up the tiles that several blocks shared. Grid: (boundaries between blocks, kRows / kMergeRows).
template <class Traits>
__global__ void __launch_bounds__(kMergeThreads)
    merge_text_backward(const __grid_constant__ TextBackwardParams<typename Traits::Element> p) {
  using Number = NumberOf<typename Traits::Element>;
  constexpr int kPlane = Traits::kRows * Traits::kWidth, kSlot = kTextGradSlot<Traits>;
  SharedTile shared;
  if (!find_shared_tile(p.work, blockIdx.x, shared)) {
    return;
  }
  const int64_t tiles_per_sample = p.work.tiles / p.shape.batch, batch = shared.tile / tiles_per_sample;
  const int row = merge_row(), columns = p.shape.heads * p.shape.tokens;
  const int place = static_cast<int>(shared.tile % tiles_per_sample) * Traits::kRows + row;
  if (place >= columns) {
    return;
  }
  const int64_t token = batch * columns + place;
  const auto sum_from = [&](int plane) {
    return [&, plane](int column) {
      return sum_slots(shared, p.partial + plane + row * Traits::kWidth + column, kSlot,
                       [](int64_t) { return Number(1); });
    };
  };
  merge_columns(p.grad_keys + token * p.shape.width, p.shape.width, sum_from(0));
  merge_columns(p.grad_values + token * p.shape.width, p.shape.width, sum_from(kPlane));
  if (lane() == 0) {
    Number bias = Number(0);
    for_each_slot(shared, [&](int64_t slot) { bias += p.partial[slot * kSlot + 2 * kPlane + row]; });
    p.grad_bias[token] = bias;
  }
}

}  // namespace sdpt_ext::cuda
