// Descriptions of tensors for the copies of a Hopper's tensor memory accelerator.
#pragma once

#include <cstring>
#include <type_traits>

#include <cuda.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/Exception.h>

#include "../dispatch.h"

namespace sdpt_ext::cuda::hopper {

// The driver's function, which the runtime library finds: nothing links against the driver.
inline decltype(&cuTensorMapEncodeTiled) encode_tensor_map() {
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

// Contiguous (matrices, rows, columns) in boxes of 64 columns of some rows of one matrix, laid out as wgmma reads them.
// What a box holds beyond its matrix is zeros, or is not written.
template <typename Element>
CUtensorMap tensor_map(const Element* data, int64_t matrices, int64_t rows, int64_t columns, int box_rows) {
  static_assert(sizeof(Element) == 2, "panels of 128 bytes hold 64 elements of 16 bits");
  constexpr auto kType =
      std::is_same_v<Element, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const auto size = [](int64_t value) { return static_cast<cuuint64_t>(value); };
  const cuuint64_t sizes[] = {size(columns), size(rows), size(matrices)};
  const cuuint64_t strides[] = {size(columns * 2), size(rows * columns * 2)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows), 1}, steps[] = {1, 1, 1};
  alignas(128) cuuint64_t words[CU_TENSOR_MAP_NUM_QWORDS];  // returned values need not be aligned
  const CUresult result = encode_tensor_map()(
      reinterpret_cast<CUtensorMap*>(words), kType, 3, const_cast<Element*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(result == CUDA_SUCCESS, "bi_attention: cuTensorMapEncodeTiled fails with ", static_cast<int>(result));
  CUtensorMap map;
  std::memcpy(&map, words, sizeof(map));
  return map;
}

}  // namespace sdpt_ext::cuda::hopper
