// Gradients of keys, key_bias and values on a Hopper's tensor cores; see ../bi_attention_text_backward.cuh for the
// maths.
//
// A block holds a tile of 64 text rows. One consuming warpgroup follows the weights of the text's softmax and sums up
// the gradient of the keys, the other one those of the image's and the gradient of the values, while the producer
// brings tiles of image rows and of their output gradients. Both compute the scores, and the gradients of those pass
// from the image's side to the text's: thus each has registers for a gradient of 256 columns.
#pragma once

#include "../bi_attention_text_backward.cuh"
#include "image_tiles.cuh"
#include "pipeline.cuh"

namespace sdpt_ext::cuda::hopper {

template <typename Element_>
struct TextGradTraits {
  using Element = Element_;
  static constexpr int kColumns = 48;  // image rows of a tile
  static constexpr int kStages = 4;    // image rows and gradients take turns
  static constexpr int kHeads = 8;     // that the rows of a tile may be of
  static constexpr int kRows = kGroupRows, kWidth = hopper::kWidth, kThreads = hopper::kThreads;

  __host__ __device__ static constexpr int heads_of_tile(int heads, int tokens) {
    const int most = (kRows + tokens - 2) / tokens + 1;
    return heads < most ? heads : most;
  }
};

template <typename Element>
struct TextBackwardParams : cuda::TextBackwardParams<Element> {
  CUtensorMap image_map, grads_map;            // (B, N, D) in boxes of kColumns rows
  CUtensorMap prompts_map;                     // (1, K, D), the same
  CUtensorMap grad_keys_map, grad_values_map;  // (B, H * T, D) in boxes of 64 rows
};

// Which rows a tile holds, and of which heads.
struct TextTile {
  int batch;
  int first, rows;  // of the batch's H * T
  int first_head, heads;

  __device__ TextTile(const Sizes& shape, const Work& work, int64_t tile) {
    const int per_sample = static_cast<int>(work.tiles / shape.batch);
    batch = static_cast<int>(tile / per_sample);
    first = static_cast<int>(tile % per_sample) * kGroupRows;
    rows = min(kGroupRows, shape.heads * shape.tokens - first);
    first_head = first / shape.tokens;
    heads = (first + rows - 1) / shape.tokens - first_head + 1;
  }
};

template <class Traits>
struct TextBackward {
  using Element = typename Traits::Element;
  using Params = TextBackwardParams<Element>;
  static constexpr int kColumns = Traits::kColumns;
  static constexpr int kPlane = kGroupRows * kWidth, kSlot = kTextGradSlot<Traits>;
  using Scores = Fragment<kColumns>;

  struct ImageTerms {
    float hidden[kColumns];  // beside image rows: 0, or -infinity for rows that the text does not see
    float lse[Traits::kHeads][kColumns], delta[Traits::kHeads][kColumns];  // beside gradients
  };
  using Image = Ring<Element, kColumns, Traits::kStages, ImageTerms>;

  struct Memory {
    alignas(1024) Element keys[kGroupRows * kWidth];
    alignas(1024) Element values[kGroupRows * kWidth];
    alignas(1024) Element grad_u[kGroupRows * kWidth];
    alignas(1024) Image image;
    float score_grads[kColumns / 2][kGroupThreads];  // through the image, each for the same thread of the other group
    uint64_t handed_over, taken;
  };

  const Params& p;
  Memory& shared;

  __device__ __forceinline__ void init() {
    shared.image.init();
    ptx::mbarrier_init(ptx::shared_address(&shared.handed_over), kGroupThreads);
    ptx::mbarrier_init(ptx::shared_address(&shared.taken), kGroupThreads);
  }

  // ---- the producing warpgroup

  __device__ __forceinline__ void produce() {
    Cursor<Image> cursor(shared.image);
    for_each_segment(p.work, [&](const Segment& segment) {
      const TextTile tile(p.shape, p.work, segment.tile);
      for (int item = segment.begin; item < segment.end; ++item) {
        load_image(cursor, tile, item);
      }
    });
  }

  __device__ __forceinline__ void load_image(Cursor<Image>& cursor, const TextTile& tile, int item) {
    const ImageTiles<kColumns> tiles{p.shape};
    const int image = p.shape.image, first = tiles.first(item), rows = tiles.rows(item);
    const bool prompt = tiles.is_prompt(item);
    const bool* visible =
        prompt || p.image.visible == nullptr ? nullptr : p.image.visible + int64_t{tile.batch} * image;
    const Box box = prompt ? Box{&p.prompts_map, first - image, 0} : Box{&p.image_map, first, tile.batch};
    cursor.fill(box, kColumns, [&](ImageTerms& terms, int i) {
      terms.hidden[i] = i >= rows || (visible != nullptr && !visible[first + i]) ? -kInfinity : 0.0f;
    });
    // Past the image are zeros: prompts have no output.
    cursor.fill(Box{&p.grads_map, first, tile.batch}, tile.heads * kColumns, [&](ImageTerms& terms, int i) {
      const int head = i / kColumns, column = i % kColumns, row = first + column;
      const int64_t place = int64_t{tile.batch * p.shape.heads + tile.first_head + head} * image + row;
      terms.lse[head][column] = row < image ? p.image.lse[place] : kInfinity;
      terms.delta[head][column] = row < image ? p.image.delta[place] : 0.0f;
    });
  }

  // ---- the consuming warpgroups

  __device__ __forceinline__ void consume(int group) {
    Cursor<Image> cursor(shared.image);
    uint32_t parity = 0;  // of what is handed over
    for_each_segment(p.work, [&](const Segment& segment) {
      const TextTile tile(p.shape, p.work, segment.tile);
      load_text(tile, group);
      Fragment<kWidth> output;
      output.clear();
      if (group == 0) {
        follow_text(output, tile, segment, cursor, parity);
        store(output, segment, tile, shared.grad_u, &p.grad_keys_map, 0);
      } else {
        follow_image(output, tile, segment, cursor, parity);
        store(output, segment, tile, shared.values, &p.grad_values_map, 1);
      }
    });
    ptx::wait_for_stores();
  }

  __device__ __forceinline__ void load_text(const TextTile& tile, int group) {
    constexpr int kBarrier = 3;
    const int width = p.shape.width, tokens = p.shape.tokens;
    const int64_t head = int64_t{tile.batch} * p.shape.heads;
    const auto token_of = [&](const Element* rows) {
      return
          [&, rows](int row) { return row < tile.rows ? rows + (head * tokens + tile.first + row) * width : nullptr; };
    };
    const auto grad_of = [&](int row) -> const Element* {
      const int place = tile.first + row, token = place % tokens;
      const bool exists = row < tile.rows && token < p.shape.text;
      return exists ? p.grad_u + ((head + place / tokens) * p.shape.text + token) * width : nullptr;
    };
    ptx::barrier_sync(kBarrier, kConsumers * kGroupThreads);  // both are done with the last tile
    if (group == 0) {
      load_rows<Element>(ptx::shared_address(shared.keys), width, token_of(p.keys));
      load_rows<Element>(ptx::shared_address(shared.grad_u), width, grad_of);
    } else {
      load_rows<Element>(ptx::shared_address(shared.values), width, token_of(p.values));
    }
    ptx::barrier_sync(kBarrier, kConsumers * kGroupThreads);
  }

  // What a thread knows of its two rows.
  struct RowTerms {
    TextTerm<float> text[kRowsPerThread];
    uint32_t dropout_keys[kRowsPerThread];
    int head[kRowsPerThread];  // counted from the first of the tile

    __device__ __forceinline__ RowTerms(const Params& p, const TextTile& tile, Direction direction) {
      const int tokens = p.shape.tokens, batch_head = tile.batch * p.shape.heads;
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        const bool exists = row_of(i) < tile.rows;
        const int place = tile.first + row_of(i);
        text[i] = p.text.load(p.shape, batch_head + place / tokens, exists ? place % tokens : tokens);
        dropout_keys[i] = p.dropout.key(direction, batch_head * tokens + place, p.shape.batch * p.shape.heads * tokens);
        head[i] = exists ? place / tokens - tile.first_head : 0;
      }
    }
  };

  // Calls body(factor), where factor(key, image row) is what dropout multiplies a weight by.
  template <typename Body>
  __device__ __forceinline__ void with_dropout(const Body& body) {
    if (p.dropout.active()) {
      body([&](uint32_t key, int row) { return p.dropout.factor(key, row); });
    } else {
      body([](uint32_t, int) { return 1.0f; });
    }
  }

  __device__ __forceinline__ void follow_text(Fragment<kWidth>& grad_keys,
                                              const TextTile& tile,
                                              const Segment& segment,
                                              Cursor<Image>& cursor,
                                              uint32_t& parity) {
    const RowTerms rows(p, tile, kText);
    for (int item = segment.begin; item < segment.end; ++item, parity ^= 1) {
      Scores scores, grads;
      cursor.wait();
      begin(scores);
      multiply_transposed<Element>(scores, ptx::shared_address(shared.keys), cursor.tile());
      begin(grads);
      multiply_transposed<Element>(grads, ptx::shared_address(shared.grad_u), cursor.tile());
      finish<1>(scores);
      finish(grads);
      with_dropout([&](const auto& factor) {
        differentiate_text(scores, grads, rows, cursor.terms(), ImageTiles<kColumns>{p.shape}.first(item), factor);
      });
      take_image_grads(grads, parity);
      const Packed<Element, kColumns> score_grads(grads);
      begin(grad_keys);
      multiply(grad_keys, score_grads, cursor.tile());
      finish(grad_keys);
      cursor.release();
      cursor.wait();
      cursor.release();  // of the output gradients, which only the other group needs
    }
  }

  template <typename Factor>
  __device__ __forceinline__ void differentiate_text(
      Scores& scores, Scores& grads, const RowTerms& rows, const ImageTerms& image, int first, const Factor& factor) {
    for_each(
        [&](int i, int column, float score, float& grad) {
          const TextTerm<float>& term = rows.text[i];
          const float weight = exponential<Element>(score + image.hidden[column] - term.lse);
          grad = weight * (factor(rows.dropout_keys[i], first + column) * (grad + term.grad_mass) - term.delta);
        },
        scores,
        grads);
  }

  __device__ __forceinline__ void follow_image(Fragment<kWidth>& grad_values,
                                               const TextTile& tile,
                                               const Segment& segment,
                                               Cursor<Image>& cursor,
                                               uint32_t& parity) {
    const RowTerms rows(p, tile, kImage);
    float grad_bias[kRowsPerThread] = {};
    for (int item = segment.begin; item < segment.end; ++item, parity ^= 1) {
      Scores scores, grads;
      Cursor<Image> image = cursor;
      image.wait();
      begin(scores);
      multiply_transposed<Element>(scores, ptx::shared_address(shared.keys), image.tile());
      cursor.advance();
      cursor.wait();
      begin(grads);
      multiply_transposed<Element>(grads, ptx::shared_address(shared.values), cursor.tile());
      finish<1>(scores);
      image.release();
      finish(grads);
      with_dropout([&](const auto& factor) {
        differentiate_image(
            scores, grads, grad_bias, rows, cursor.terms(), ImageTiles<kColumns>{p.shape}.first(item), factor);
      });
      const Packed<Element, kColumns> weights(scores);
      begin(grad_values);
      multiply(grad_values, weights, cursor.tile());
      hand_over(grads, parity);
      finish(grad_values);
      cursor.release();
    }
    store_bias(grad_bias, tile, segment);
  }

  // Scores become the image's weights after dropout, and the gradients of those the ones of the scores.
  template <typename Factor>
  __device__ __forceinline__ void differentiate_image(Scores& scores,
                                                      Scores& grads,
                                                      float (&grad_bias)[kRowsPerThread],
                                                      const RowTerms& rows,
                                                      const ImageTerms& image,
                                                      int first,
                                                      const Factor& factor) {
    for_each(
        [&](int i, int column, float& score, float& grad) {
          const float kept = factor(rows.dropout_keys[i], first + column);
          const float weight = exponential<Element>(score + rows.text[i].bias - image.lse[rows.head[i]][column]);
          grad = weight * (kept * grad - image.delta[rows.head[i]][column]);
          grad_bias[i] += grad;
          score = weight * kept;
        },
        scores,
        grads);
  }

  // ---- from the one to the other

  __device__ __forceinline__ void hand_over(Scores& grads, uint32_t parity) {
    wait_for_phase(shared.taken, parity ^ 1);
#pragma unroll
    for (int index = 0; index < kColumns / 2; ++index) {
      shared.score_grads[index][threadIdx.x % kGroupThreads] = grads.values[index];
    }
    arrive(shared.handed_over);
  }

  __device__ __forceinline__ void take_image_grads(Scores& grads, uint32_t parity) {
    wait_for_phase(shared.handed_over, parity);
#pragma unroll
    for (int index = 0; index < kColumns / 2; ++index) {
      grads.values[index] += shared.score_grads[index][threadIdx.x % kGroupThreads];
    }
    arrive(shared.taken);
  }

  // ---- results

  __device__ __forceinline__ void store(Fragment<kWidth>& output,
                                        const Segment& segment,
                                        const TextTile& tile,
                                        Element* place,
                                        const CUtensorMap* map,
                                        int group) {
    if (segment.slot < 0) {
      ptx::barrier_sync(1 + group, kGroupThreads);  // all warps are done with the tile whose place the result takes
      store_tile<Element>(output, place, map, tile.first, tile.batch, 1 + group);
    } else {
      store_partial(output, p.partial + segment.slot * kSlot + group * kPlane);
    }
  }

  __device__ __forceinline__ void store_bias(float (&grad_bias)[kRowsPerThread],
                                             const TextTile& tile,
                                             const Segment& segment) {
    reduce_rows(grad_bias, Sum{});
    const int64_t token = int64_t{tile.batch} * p.shape.heads * p.shape.tokens + tile.first;
    float* target = segment.slot < 0 ? p.grad_bias + token : p.partial + segment.slot * kSlot + 2 * kPlane;
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      if (speaks_for_row() && row_of(i) < tile.rows) {
        target[row_of(i)] = grad_bias[i];
      }
    }
  }
};

template <class Traits>
__global__ void SDPT_EXT_HOPPER_BOUNDS
text_backward(const __grid_constant__ TextBackwardParams<typename Traits::Element> params) {
#ifdef SDPT_EXT_HOPPER
  run_warpgroups(TextBackward<Traits>{params, shared_memory<typename TextBackward<Traits>::Memory>()});
#endif
}

}  // namespace sdpt_ext::cuda::hopper
