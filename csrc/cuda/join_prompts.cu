// Maps prototype tokens to prompt rows and writes them behind the text in one launch, and the way back.
//
// The map of a frozen layer is one matrix: its rows are read once, by four to a warp, for up to 16 tokens at a time.
#include "../join_prompts_shape.h"
#include "../ops.h"
#include "../tensors.h"
#include "dispatch.h"
#include "launch.h"
#include "mma.cuh"

namespace sdpt_ext::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kOutputsOfWarp = 4;
constexpr int kSteps = 4;  // of 32 columns whose weights are on their way at a time
constexpr int kStride = 32 * kSteps;
constexpr int kTextRowsOfWarp = 4;
constexpr int kColumns = 16;  // of the tokens, in a block on the way back
constexpr int kBackwardThreads = 1024;

template <typename Number>
constexpr int kTokens = 64 / sizeof(Number);

int64_t blocks_for(int64_t count, int64_t each) { return (count + each - 1) / each; }

// Where prompts stand: image rows of their own (count, width), the others behind the text of every image.
template <typename Row>
struct PromptPlaces {
  Row* image_rows;
  Row* keys;    // (batch, heads, text + count, width)
  Row* bias;    // (batch, heads, text + count)
  Row* values;  // as keys

  // Calls body with the address of an output of a token, once per image where every image has its own.
  template <typename Body>
  __device__ void for_each(const JoinPromptsShape& shape, int64_t output, int64_t token, const Body& body) const {
    if (output < shape.width) {
      return body(image_rows + token * shape.width + output);
    }
    output -= shape.width;
    const int64_t plane = shape.heads * shape.width;
    const bool is_bias = output >= plane && output < plane + shape.heads;
    Row* rows = is_bias ? bias : output < plane ? keys : values;
    output -= is_bias ? plane : output < plane ? 0 : plane + shape.heads;
    const int64_t width = is_bias ? 1 : shape.width, head = output / width;
    for (int64_t image = 0; image < shape.batch; ++image) {
      const int64_t row = (image * shape.heads + head) * shape.joined + shape.text + token;
      body(rows + row * width + output % width);
    }
  }
};

template <typename Token, typename Row>
struct Join {
  JoinPromptsShape shape;
  const Row* keys;
  const Row* key_bias;
  const Row* values;
  const Token* tokens;
  const Token* weight;
  const Token* offset;
  PromptPlaces<Row> joined;
  int64_t mapping_blocks;
};

template <typename Number>
__device__ Number sum_of_warp(Number value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, step);
  }
  return value;
}

// What a warp maps at a time.
struct MappedTile {
  int64_t first_output, first_token;
  int outputs, tokens;
};

// Row by row of the weight times every token. The lanes share out the depth; the block shares the tokens.
template <typename Token, typename Row, typename Number = NumberOf<Token>>
__device__ void multiply(const Join<Token, Row>& join,
                         const MappedTile& tile,
                         Number (&sums)[kOutputsOfWarp][kTokens<Number>]) {
  __shared__ Number tokens[kTokens<Number>][kStride];
  const int64_t depth = join.shape.depth;
  const Token* const weights = join.weight + tile.first_output * depth;
  for (int64_t first = 0; first < depth; first += kStride) {
    Number weight[kSteps][kOutputsOfWarp];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < kOutputsOfWarp; ++i) {
        const int64_t column = first + 32 * step + lane();
        weight[step][i] = i < tile.outputs && column < depth ? static_cast<Number>(weights[i * depth + column]) : 0;
      }
    }
    __syncthreads();
    for (int index = threadIdx.x; index < kTokens<Number> * kStride; index += 32 * kWarps) {
      const int64_t k = index / kStride, column = first + index % kStride;
      const bool exists = k < tile.tokens && column < depth;
      tokens[k][index % kStride] =
          exists ? static_cast<Number>(join.tokens[(tile.first_token + k) * depth + column]) : 0;
    }
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int k = 0; k < kTokens<Number>; ++k) {
        const Number token = tokens[k][32 * step + lane()];
#pragma unroll
        for (int i = 0; i < kOutputsOfWarp; ++i) {
          sums[i][k] += weight[step][i] * token;
        }
      }
    }
  }
}

// A warp maps up to kTokens tokens to kOutputsOfWarp outputs.
template <typename Token, typename Row>
__device__ void map_tokens(const Join<Token, Row>& join) {
  using Number = NumberOf<Token>;
  const JoinPromptsShape& shape = join.shape;
  MappedTile tile{(int64_t{blockIdx.x} * kWarps + threadIdx.x / 32) * kOutputsOfWarp,
                  int64_t{blockIdx.y} * kTokens<Number>};
  tile.outputs = min(int64_t{kOutputsOfWarp}, shape.outputs - tile.first_output);
  tile.tokens = min(int64_t{kTokens<Number>}, shape.count - tile.first_token);
  Number sums[kOutputsOfWarp][kTokens<Number>] = {};
  multiply(join, tile, sums);
#pragma unroll
  for (int i = 0; i < kOutputsOfWarp; ++i) {
    Number kept = 0;  // lane k keeps what became of token k
#pragma unroll
    for (int k = 0; k < kTokens<Number>; ++k) {
      const Number sum = sum_of_warp(sums[i][k]);
      kept = lane() == k ? sum : kept;
    }
    if (i < tile.outputs && lane() < tile.tokens) {
      const int64_t output = tile.first_output + i;
      const Row value = static_cast<Row>(kept + static_cast<Number>(join.offset[output]));
      join.joined.for_each(shape, output, tile.first_token + lane(), [&](Row* address) { *address = value; });
    }
  }
}

// A warp per row of the text and head.
template <typename Token, typename Row>
__device__ void copy_text(const Join<Token, Row>& join, int64_t block) {
  const JoinPromptsShape& shape = join.shape;
  for (int i = 0; i < kTextRowsOfWarp; ++i) {
    const int64_t row = (block * kTextRowsOfWarp + i) * kWarps + threadIdx.x / 32;
    if (row >= shape.batch * shape.heads * shape.text) {
      return;
    }
    const int64_t target = row + row / shape.text * shape.count;
    for (int64_t column = lane(); column < shape.width; column += 32) {
      join.joined.keys[target * shape.width + column] = join.keys[row * shape.width + column];
      join.joined.values[target * shape.width + column] = join.values[row * shape.width + column];
    }
    if (lane() == 0) {
      join.joined.bias[target] = join.key_bias[row];
    }
  }
}

// blockIdx.x: tile of outputs, then tile of text rows; blockIdx.y: tile of tokens.
template <typename Token, typename Row>
__global__ void __launch_bounds__(32 * kWarps, 8 / sizeof(NumberOf<Token>)) join_rows(const Join<Token, Row> join) {
  if (blockIdx.x < join.mapping_blocks) {
    map_tokens(join);
  } else if (blockIdx.y == 0) {
    copy_text(join, blockIdx.x - join.mapping_blocks);
  }
}

// The gradients of one output with respect to the tokens of a tile.
template <typename Number>
struct alignas(16) OutputGradients {
  Number of[kTokens<Number>];
};

// Adds the gradients of all images. gradients: (tiles of tokens, outputs), zeros beyond the last token.
template <typename Row, typename Number>
__global__ void __launch_bounds__(256)
    gather_gradients(JoinPromptsShape shape, PromptPlaces<const Row> places, OutputGradients<Number>* gradients) {
  const int64_t output = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, token = blockIdx.y;
  if (output >= shape.outputs) {
    return;
  }
  Number sum = 0;
  if (token < shape.count) {
    places.for_each(shape, output, token, [&](const Row* address) { sum += static_cast<Number>(*address); });
  }
  const int64_t tile = token / kTokens<Number>;
  gradients[tile * shape.outputs + output].of[token % kTokens<Number>] = sum;
}

// A block takes kColumns columns of the tokens, half a warp an output at a time; blockIdx.y: tile of tokens.
template <typename Token, typename Number = NumberOf<Token>>
__global__ void __launch_bounds__(kBackwardThreads) multiply_back(JoinPromptsShape shape,
                                                                  const OutputGradients<Number>* gradients,
                                                                  const Token* weight,
                                                                  Token* grad_tokens) {
  __shared__ Number partial[kBackwardThreads / 32][kTokens<Number>][kColumns];
  const int64_t first_column = int64_t{blockIdx.x} * kColumns, first_token = int64_t{blockIdx.y} * kTokens<Number>;
  const int64_t column = first_column + threadIdx.x % kColumns, outputs = shape.outputs;
  Number sums[kTokens<Number>] = {};
#pragma unroll 4
  for (int64_t output = threadIdx.x / kColumns; output < outputs; output += kBackwardThreads / kColumns) {
    const Number factor = column < shape.depth ? static_cast<Number>(weight[output * shape.depth + column]) : 0;
    const OutputGradients<Number> gradient = gradients[blockIdx.y * outputs + output];
#pragma unroll
    for (int k = 0; k < kTokens<Number>; ++k) {
      sums[k] += gradient.of[k] * factor;
    }
  }
#pragma unroll
  for (int k = 0; k < kTokens<Number>; ++k) {
    const Number sum = sums[k] + __shfl_xor_sync(kAllLanes, sums[k], kColumns);
    if (lane() < kColumns) {
      partial[threadIdx.x / 32][k][lane()] = sum;
    }
  }
  __syncthreads();
  const int64_t token = first_token + threadIdx.x / kColumns;
  if (threadIdx.x < kTokens<Number> * kColumns && token < shape.count && column < shape.depth) {
    Number sum = 0;
    for (int warp = 0; warp < kBackwardThreads / 32; ++warp) {
      sum += partial[warp][threadIdx.x / kColumns][threadIdx.x % kColumns];
    }
    grad_tokens[token * shape.depth + column] = static_cast<Token>(sum);
  }
}

// Calls body with the element types of the tokens and of the rows: the same, or float32 tokens beside 16-bit rows.
template <typename Body>
void dispatch_pair(const Tensor& tokens, const Tensor& rows, const Body& body) {
  dispatch_floating(rows, "join_prompts", [&](auto row) {
    if (tokens.scalar_type() == rows.scalar_type()) {
      return body(row, row);
    }
    STD_TORCH_CHECK(sizeof(row) == 2 && tokens.scalar_type() == ScalarType::Float,
                    "join_prompts: tokens must have the dtype of keys, or float32 where that is a half type");
    if constexpr (sizeof(row) == 2) {
      body(float{}, row);
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> join_prompts(const Tensor& keys,
                                                        const Tensor& key_bias,
                                                        const Tensor& values,
                                                        const Tensor& tokens,
                                                        const Tensor& weight,
                                                        const Tensor& offset) {
  const JoinPromptsShape shape = check_join_prompts(keys, key_bias, values, tokens, weight, offset);
  const LaunchScope scope(keys);
  const Tensor joined_keys = empty(keys, {shape.batch, shape.heads, shape.joined, shape.width}),
               joined_bias = empty(keys, {shape.batch, shape.heads, shape.joined}),
               joined_values = empty(keys, {shape.batch, shape.heads, shape.joined, shape.width}),
               image_rows = empty(keys, {shape.count, shape.width});
  const Tensor inputs[] = {torch::stable::contiguous(keys),
                           torch::stable::contiguous(key_bias),
                           torch::stable::contiguous(values),
                           torch::stable::contiguous(tokens),
                           torch::stable::contiguous(weight),
                           torch::stable::contiguous(offset)};
  dispatch_pair(tokens, keys, [&](auto token, auto row) {
    using Token = decltype(token);
    using Row = decltype(row);
    const int64_t mapping_blocks = blocks_for(shape.outputs, kWarps * kOutputsOfWarp);
    const int64_t text_blocks = blocks_for(shape.batch * shape.heads * shape.text, kWarps * kTextRowsOfWarp);
    const PromptPlaces<Row> joined{mutable_data<Row>(image_rows),
                                   mutable_data<Row>(joined_keys),
                                   mutable_data<Row>(joined_bias),
                                   mutable_data<Row>(joined_values)};
    const Join<Token, Row> join{shape,
                                data<Row>(inputs[0]),
                                data<Row>(inputs[1]),
                                data<Row>(inputs[2]),
                                data<Token>(inputs[3]),
                                data<Token>(inputs[4]),
                                data<Token>(inputs[5]),
                                joined,
                                mapping_blocks};
    const int64_t tiles = std::max(int64_t{1}, blocks_for(shape.count, kTokens<NumberOf<Token>>));
    if (mapping_blocks + text_blocks > 0) {
      join_rows<<<dim3(mapping_blocks + text_blocks, tiles), 32 * kWarps, 0, scope.stream()>>>(join);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return {joined_keys, joined_bias, joined_values, image_rows};
}

Tensor join_prompts_backward(const Tensor& grad_keys,
                             const Tensor& grad_bias,
                             const Tensor& grad_values,
                             const Tensor& grad_image_rows,
                             const Tensor& weight) {
  STD_TORCH_CHECK(grad_keys.dim() == 4 && grad_image_rows.dim() == 2 && weight.dim() == 2,
                  "join_prompts_backward: expected gradients of keys (B, H, T, D) and image rows (K, D), weight (F, E)");
  const int64_t count = grad_image_rows.size(0);
  const JoinPromptsShape shape{grad_keys.size(0), grad_keys.size(1), grad_keys.size(2) - count,
                               grad_keys.size(3), count, weight.size(1)};
  STD_TORCH_CHECK(shape.text >= 0 && has_shape(grad_image_rows, {count, shape.width}) &&
                      has_shape(grad_values, {shape.batch, shape.heads, shape.joined, shape.width}) &&
                      has_shape(grad_bias, {shape.batch, shape.heads, shape.joined}) &&
                      weight.size(0) == shape.outputs,
                  "join_prompts_backward: the gradients do not fit each other or the weight");
  const LaunchScope scope(grad_keys);
  const Tensor gradients[] = {torch::stable::contiguous(grad_image_rows),
                              torch::stable::contiguous(grad_keys),
                              torch::stable::contiguous(grad_bias),
                              torch::stable::contiguous(grad_values)};
  const Tensor map = torch::stable::contiguous(weight), grad_tokens = empty(weight, {count, shape.depth});
  if (count == 0 || shape.depth == 0) {
    return grad_tokens;
  }
  dispatch_pair(weight, grad_keys, [&](auto token, auto row) {
    using Token = decltype(token);
    using Row = decltype(row);
    using Number = NumberOf<Token>;
    const int64_t tiles = blocks_for(count, kTokens<Number>);
    const auto type = sizeof(Number) == 8 ? ScalarType::Double : ScalarType::Float;
    const int64_t sizes[] = {tiles, shape.outputs, kTokens<Number>};
    const Tensor sums = torch::stable::new_empty(weight, {sizes, 3}, type);
    auto* output_gradients = mutable_data<OutputGradients<Number>>(sums);
    const PromptPlaces<const Row> places{
        data<Row>(gradients[0]), data<Row>(gradients[1]), data<Row>(gradients[2]), data<Row>(gradients[3])};
    gather_gradients<Row, Number>
        <<<dim3(blocks_for(shape.outputs, 256), tiles * kTokens<Number>), 256, 0, scope.stream()>>>(
            shape, places, output_gradients);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    multiply_back<Token><<<dim3(blocks_for(shape.depth, kColumns), tiles), kBackwardThreads, 0, scope.stream()>>>(
        shape, output_gradients, data<Token>(map), mutable_data<Token>(grad_tokens));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return grad_tokens;
}

}  // namespace sdpt_ext::cuda
