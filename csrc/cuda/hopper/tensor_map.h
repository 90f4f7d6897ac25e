// Descriptions of tensors for the copies of a Hopper's tensor memory accelerator.
#pragma once

#include <cstring>
#include <type_traits>
#include <vector>

#include <cuda.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/Exception.h>

#include "../bi_attention.cuh"
#include "../dispatch.h"

namespace sdpt_ext::cuda::hopper {

// The driver's function, which the runtime library finds: nothing links against the driver.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  STD_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
#else
  STD_CUDA_CHECK(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found));
#endif
  STD_TORCH_CHECK(function != nullptr && found == cudaDriverEntryPointSuccess,
                  "bi_attention: the driver lacks cuTensorMapEncodeTiled");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

// Sizes, boxes and, but for the first dimension, strides of a tensor, those of its memory's order first.
struct TensorMapShape {
  std::vector<cuuint64_t> sizes, strides;  // elements, bytes
  std::vector<cuuint32_t> box;
};

// In boxes laid out as wgmma reads them. What a box holds beyond the tensor is zeros, or is not written.
template <typename Element>
CUtensorMap encode_tensor_map(const Element* data, const TensorMapShape& shape) {
  static_assert(sizeof(Element) == 2, "panels of 128 bytes hold 64 elements of 16 bits");
  constexpr auto kType =
      std::is_same_v<Element, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const std::vector<cuuint32_t> steps(shape.box.size(), 1);
  alignas(128) cuuint64_t words[CU_TENSOR_MAP_NUM_QWORDS];  // returned values need not be aligned
  const CUresult result = tensor_map_encoder()(
      reinterpret_cast<CUtensorMap*>(words), kType, static_cast<cuuint32_t>(shape.box.size()),
      const_cast<Element*>(data), shape.sizes.data(), shape.strides.data(), shape.box.data(), steps.data(),
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(result == CUDA_SUCCESS, "bi_attention: cuTensorMapEncodeTiled fails with ", static_cast<int>(result));
  CUtensorMap map;
  std::memcpy(&map, words, sizeof(map));
  return map;
}

// Contiguous (matrices, rows, columns) in boxes of 64 columns of some rows of one matrix.
template <typename Element>
CUtensorMap tensor_map(const Element* data, int64_t matrices, int64_t rows, int64_t columns, int box_rows) {
  const auto size = [](int64_t value) { return static_cast<cuuint64_t>(value); };
  return encode_tensor_map(data,
                           {{size(columns), size(rows), size(matrices)},
                            {size(columns * 2), size(rows * columns * 2)},
                            {64, static_cast<cuuint32_t>(box_rows), 1}});
}

// Contiguous (batch, heads, tokens, width) in boxes of 64 columns of some heads of some tokens of one sample, the heads
// of a token one after another.
template <typename Element>
CUtensorMap head_map(const Element* data, const Sizes& shape, int tokens, int box_heads, int box_tokens) {
  const auto size = [](int64_t value) { return static_cast<cuuint64_t>(value); };
  const int64_t row = int64_t{shape.width} * 2, head = tokens * row;
  return encode_tensor_map(data,
                           {{size(shape.width), size(shape.heads), size(tokens), size(shape.batch)},
                            {size(head), size(row), size(shape.heads * head)},
                            {64, static_cast<cuuint32_t>(box_heads), static_cast<cuuint32_t>(box_tokens), 1}});
}

}  // namespace sdpt_ext::cuda::hopper
