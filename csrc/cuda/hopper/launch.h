// Where the Hopper kernels of bi_attention run; elsewhere the portable ones do.
#pragma once

#include "../bi_attention_launch.cuh"
#include "../capability.h"
#include "pipeline.cuh"

namespace sdpt_ext::cuda::hopper {

// Whether the device can and may run the kernel and the build holds it.
template <class Kernel, typename Params>
bool runs(void (*kernel)(Params)) {
  if (!hopper_kernels_allowed() || attribute(cudaDevAttrComputeCapabilityMajor) != 9 || !fits<Kernel>()) {
    return false;
  }
  cudaFuncAttributes attributes{};
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.maxThreadsPerBlock >= kThreads;
}

// Calls body with a value of the element type of x where the kernels have one for it and something to describe.
template <typename Body>
bool dispatch(const Sizes& shape, const Tensor& x, const Body& body) {
  if (shape.width <= 64 || shape.batch == 0 || shape.image == 0) {
    return false;
  }
  switch (x.scalar_type()) {
    case ScalarType::Half:
      return body(__half{});
    case ScalarType::BFloat16:
      return body(__nv_bfloat16{});
    default:
      return false;
  }
}

}  // namespace sdpt_ext::cuda::hopper
