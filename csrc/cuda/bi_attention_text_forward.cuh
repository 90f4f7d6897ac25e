// The text direction: u[h, t] = softmax over image and prompt rows n of keys[h, t] . [x; p][n], times [x; p][n].
//
// One block holds a tile of text rows, (head, token) pairs of one sample in one line: all heads share the image, so an
// image tile is loaded once and serves as keys and as values.
#pragma once

#include "image_stream.cuh"
#include "merge.cuh"

namespace sdpt_ext::cuda {

template <typename Element>
struct TextForwardParams {
  using Number = NumberOf<Element>;

  Sizes shape;
  Work work;  // a tile per (batch, kRows text rows), a step per image tile
  Dropout<Number> dropout;
  ImageOperand<Element> image;
  const Element* keys;
  Element* u;      // (B, H, L, D)
  Number* mass;     // (B, H, L)
  Number* lse;      // (B, H, L)
  Number* partial;  // slots of (kRows, kWidth) sums, kRows maxima, kRows totals, kRows masses

  __device__ int tiles_per_sample() const { return static_cast<int>(work.tiles / shape.batch); }
  // Token of a text row in a tensor of shape (B, H, T).
  __device__ int64_t token(int64_t batch, int row) const {
    return (batch * shape.heads + row / shape.text) * shape.tokens + row % shape.text;
  }
};

// Numbers of a partial result.
template <class Traits>
constexpr int kTextSlot = Traits::kRows * (Traits::kWidth + 3);

template <class Traits>
struct TextForward {
  using Element = typename Traits::Element;
  using Number = NumberOf<Element>;
  using Params = TextForwardParams<Element>;
  using Stream = ImageStream<Traits, false>;
  using Scores = Accumulator<Traits::kColumns, Number>;
  using Output = Accumulator<Traits::kWidth, Number>;
  static constexpr int kRows = Traits::kRows;
  static constexpr int kSums = kRows * Traits::kWidth, kSlot = kTextSlot<Traits>;

  struct Memory {
    alignas(128) Element queries[kRows * Traits::kWidth];
    alignas(128) Element weights[kRows * Traits::kColumns];
    typename Stream::Memory stream;
    uint32_t dropout_keys[kRows];
    Number maxima[kWarpColumns * kRows];
    Number totals[kWarpColumns * kRows];
    Number masses[kWarpColumns * kRows];
  };

  // Of the rows that a thread holds elements of; total and mass are the thread's own parts until the end.
  struct RowState {
    Number maximum[kRowsOfThread], total[kRowsOfThread], mass[kRowsOfThread];
  };

  const Params& p;
  Memory& shared;
  Stream stream;

  __device__ TextForward(const Params& params, Memory& memory)
      : p(params), shared(memory), stream(memory.stream, params.image, params.shape) {}

  __device__ __forceinline__ void run(const Segment& segment) {
    const int64_t batch = segment.tile / p.tiles_per_sample();
    const int first = static_cast<int>(segment.tile % p.tiles_per_sample()) * kRows;
    const int rows = min(kRows, p.shape.heads * p.shape.text - first);
    start(segment, batch, first, rows);
    Output output;
    output.clear();
    RowState state;
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      state.maximum[i] = -kInfinity, state.total[i] = state.mass[i] = Number(0);
    }
    for (int item = segment.begin; item < segment.end; ++item) {
      gather(output, state);
    }
    reduce_rows<kRows>(state.total, shared.totals, Sum{});
    reduce_rows<kRows>(state.mass, shared.masses, Sum{});
    if (segment.slot < 0) {
      finish(output, state, batch * p.shape.heads * p.shape.text + first, rows);
    } else {
      keep_partial(output, state, p.partial + segment.slot * kSlot);
    }
  }

  __device__ __forceinline__ void start(const Segment& segment, int64_t batch, int first, int rows) {
    const Tile<Element, Traits::kWidth> queries{shared.queries};
    const auto row_of = [&](int row) -> const Element* {
      return row < rows ? p.keys + p.token(batch, first + row) * p.shape.width : nullptr;
    };
    __syncthreads();  // the last tile is written out
    load_tile<kRows, Traits::kThreads>(queries, row_of, p.shape.width);
    if (threadIdx.x < kRows) {
      shared.dropout_keys[threadIdx.x] = p.dropout.key(kText, p.token(batch, first + threadIdx.x),
                                                       p.shape.batch * p.shape.heads * p.shape.tokens);
    }
    stream.start(batch, segment.begin, segment.end);
  }

  // Adds one image tile to the running softmax.
  __device__ __forceinline__ void gather(Output& output, RowState& state) {
    const typename Stream::Item image = stream.next();
    Scores scores;
    scores.clear();
    multiply_transposed<Traits::kWidth>(scores, Tile<Element, Traits::kWidth>{shared.queries}, 0, image.rows);
    scores.for_each([&](Number& score, int, int column) { score += image.hidden[column]; });
    rescale(output, state, scores);
    scores.for_each([&](Number& score, int i, int) {
      score = exponential<Element>(score - finite(state.maximum[i]));
      state.total[i] += score;
    });
    if (p.dropout.active()) {
      scores.for_each([&](Number& weight, int i, int column) {
        weight *= p.dropout.factor(shared.dropout_keys[row_of_thread(i)], image.first + column);
      });
    }
    scores.for_each([&](Number& weight, int i, int) { state.mass[i] += weight; });
    const Tile<Element, Traits::kColumns> weights{shared.weights};
    store(scores, weights);
    __syncthreads();
    multiply<Traits::kColumns>(output, weights, 0, image.rows);
  }

  // Raises the maxima to those of the new scores and brings what was summed up before to the new scale.
  __device__ __forceinline__ void rescale(Output& output, RowState& state, Scores& scores) {
    Number largest[kRowsOfThread] = {state.maximum[0], state.maximum[1], state.maximum[2], state.maximum[3]};
    scores.for_each([&](Number& score, int i, int) { largest[i] = fmax(largest[i], score); });
    reduce_rows<kRows>(largest, shared.maxima, Maximum{});
    Number scale[kRowsOfThread];
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      scale[i] = exponential<Element>(state.maximum[i] - finite(largest[i]));
      state.maximum[i] = largest[i];
      state.total[i] *= scale[i];
      state.mass[i] *= scale[i];
    }
    output.for_each([&](Number& value, int i, int) { value *= scale[i]; });
  }

  __device__ __forceinline__ void finish(Output& output, const RowState& state, int64_t first, int rows) {
    Number scale[kRowsOfThread];
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      scale[i] = inverse_or_zero(state.total[i]);
      if (speaks_for_row() && row_of_thread(i) < rows) {
        p.mass[first + row_of_thread(i)] = state.mass[i] * scale[i];
        p.lse[first + row_of_thread(i)] = log_sum_exp(state.maximum[i], state.total[i]);
      }
    }
    output.for_each([&](Number& value, int i, int) { value *= scale[i]; });
    const auto row_of = [&](int row) { return p.u + (first + row) * p.shape.width; };
    store_rows<Traits::kThreads>(output, Tile<Element, Traits::kWidth>{shared.queries}, rows, row_of, p.shape.width);
  }

  __device__ __forceinline__ void keep_partial(const Output& output, const RowState& state, Number* slot) {
    store_partial(output, slot);
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      if (speaks_for_row()) {
        Number* row = slot + kSums + row_of_thread(i);
        row[0] = state.maximum[i], row[kRows] = state.total[i], row[2 * kRows] = state.mass[i];
      }
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kStages)  // two blocks where memory is plenty
    text_forward(const __grid_constant__ TextForwardParams<typename Traits::Element> params) {
  using Kernel = TextForward<Traits>;
  Kernel kernel(params, shared_memory<typename Kernel::Memory>());
  for_each_segment(params.work, [&](const Segment& segment) { kernel.run(segment); });
}

// Merges the tiles that several blocks shared. Grid: (boundaries between blocks, kRows / kMergeRows).
template <class Traits>
__global__ void __launch_bounds__(kMergeThreads)
    merge_text_forward(const __grid_constant__ TextForwardParams<typename Traits::Element> p) {
  using Number = NumberOf<typename Traits::Element>;
  constexpr int kSlot = kTextSlot<Traits>;
  SharedTile shared;
  if (!find_shared_tile(p.work, blockIdx.x, shared)) {
    return;
  }
  const int64_t batch = shared.tile / p.tiles_per_sample();
  const int row = merge_row(), text_row = static_cast<int>(shared.tile % p.tiles_per_sample()) * Traits::kRows + row;
  if (text_row >= p.shape.heads * p.shape.text) {
    return;
  }
  const Number* state = p.partial + Traits::kRows * Traits::kWidth + row;
  Number maximum = -kInfinity, total = Number(0), mass = Number(0);
  for_each_slot(shared, [&](int64_t slot) { maximum = fmax(maximum, state[slot * kSlot]); });
  const auto weight = [&](int64_t slot) {
    return exponential<Number>(state[slot * kSlot] - finite(maximum));
  };
  for_each_slot(shared, [&](int64_t slot) {
    total += weight(slot) * state[slot * kSlot + Traits::kRows];
    mass += weight(slot) * state[slot * kSlot + 2 * Traits::kRows];
  });
  const Number scale = inverse_or_zero(total);
  const int64_t place = batch * p.shape.heads * p.shape.text + text_row;
  if (lane() == 0) {
    p.mass[place] = mass * scale;
    p.lse[place] = log_sum_exp(maximum, total);
  }
  merge_columns(p.u + place * p.shape.width, p.shape.width, [&](int column) {
    return sum_slots(shared, p.partial + row * Traits::kWidth + column, kSlot,
                     [&](int64_t slot) { return weight(slot) * scale; });
  });
}

}  // namespace sdpt_ext::cuda
