// Host side of the bi_attention kernels: the right instance for an element type, a width and a device, and its launch.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>

#include <torch/headeronly/util/Exception.h>

#include "../bi_attention_shape.h"
#include "../tensors.h"
#include "bi_attention.cuh"
#include "dispatch.h"
#include "launch.h"
#include "merge.cuh"

namespace sdpt_ext::cuda {

// Rows are copied in chunks of 16 bytes, which never hold more than 8 elements.
inline int64_t whole_chunks(int64_t width) {
  return (width + 7) / 8 * 8;
}

inline Sizes sizes_of(const BiAttentionShape& shape) {
  const auto narrow = [](int64_t size) { return static_cast<int>(size); };
  STD_TORCH_CHECK(shape.width > 0 && shape.width <= 256,
                  "bi_attention: the CUDA kernels need a width of at least 1 and at most 256, got ",
                  shape.width);
  STD_TORCH_CHECK(shape.batch * shape.heads * shape.tokens < int64_t{1} << 30 && shape.heads > 0,
                  "bi_attention: heads and tokens must exist and stay below 2^30 in all");
  STD_TORCH_CHECK(shape.positions + shape.prompts < int64_t{1} << 30, "bi_attention: too many image rows");
  return {narrow(shape.batch), narrow(shape.positions), narrow(shape.prompts), narrow(shape.heads),
          narrow(shape.tokens), narrow(shape.text),     narrow(whole_chunks(shape.width))};
}

template <typename Body>
void dispatch_element(const Tensor& x, bool tf32, const Body& body) {
  switch (x.scalar_type()) {
    case ScalarType::Half:
      return body(__half{});
    case ScalarType::BFloat16:
      return body(__nv_bfloat16{});
    case ScalarType::Double:
      return body(double{});
    default:
      STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "bi_attention: expected floating-point tensors");
      tf32 ? body(Tf32{}) : body(float{});
  }
}

// A chunk needs an address to match, which a view into another tensor may lack.
inline Tensor aligned(const Tensor& tensor) {
  const Tensor packed = torch::stable::contiguous(tensor);
  const bool fits = reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 16 == 0;
  return fits ? packed : torch::stable::clone(packed);
}

inline std::optional<Tensor> aligned(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(aligned(*tensor)) : std::nullopt;
}

// With zeros at the end of rows that are no whole chunks.
inline Tensor padded(const Tensor& rows) {
  const int64_t width = rows.size(rows.dim() - 1);
  const std::vector<int64_t> amount{0, whole_chunks(width) - width};
  return amount[1] == 0 ? aligned(rows) : aligned(torch::stable::pad(rows, {amount.data(), amount.size()}));
}

inline std::optional<Tensor> padded(const std::optional<Tensor>& rows) {
  return rows ? std::optional(padded(*rows)) : std::nullopt;
}

inline Tensor unpadded(Tensor rows, int64_t width) {
  const int64_t last = rows.dim() - 1;
  return rows.size(last) == width ? rows : torch::stable::contiguous(torch::stable::narrow(rows, last, 0, width));
}

// Of the type that softmaxes are computed in.
inline Tensor empty_numbers(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, accumulation_type(like.scalar_type()));
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls body(Constant) with the smallest width among those compiled.
template <typename Body>
void dispatch_width(int width, const Body& body) {
  width <= 64 ? body(Constant<64>{}) : body(Constant<256>{});
}

inline int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

constexpr size_t kMostSharedMemory = 227 * 1024;  // of a block on any device: what needs more is not compiled

// Shared memory that one block may have. SDPT_EXT_SHARED_MEMORY lets a test run what smaller devices run.
inline size_t shared_memory_limit() {
  const char* pretended = std::getenv("SDPT_EXT_SHARED_MEMORY");
  return pretended ? std::stoul(pretended) : attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

template <class Kernel>
bool fits() {
  return sizeof(typename Kernel::Memory) <= shared_memory_limit();
}

// Runs kernel on as many blocks as are resident at once (at most one per step), and merge where they may share tiles.
template <class Kernel, class Traits, typename Params, typename MergeParams>
void launch(const LaunchScope& scope,
            const Tensor& like,
            Params params,
            void (*kernel)(Params),
            void (*merge)(MergeParams)) {
  if (params.work.steps() == 0) {
    return;
  }
  constexpr size_t kMemory = sizeof(typename Kernel::Memory);
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMemory));
  int resident = 0;
  STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, Traits::kThreads, kMemory));
  const int64_t blocks = int64_t{std::max(resident, 1)} * scope.multiprocessors();
  params.work.blocks = static_cast<int>(std::min(blocks, params.work.steps()));
  using Number = typename Params::Number;
  const Tensor partial = empty_numbers(like, {params.work.blocks * kSlotsPerBlock, int64_t{Kernel::kSlot}});
  params.partial = mutable_data<Number>(partial);
  kernel<<<params.work.blocks, Traits::kThreads, kMemory, scope.stream()>>>(params);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (params.work.blocks > 1 && params.work.items > 1) {
    const dim3 grid(params.work.blocks - 1, Traits::kRows / kMergeRows);
    merge<<<grid, kMergeThreads, 0, scope.stream()>>>(params);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

}  // namespace sdpt_ext::cuda
