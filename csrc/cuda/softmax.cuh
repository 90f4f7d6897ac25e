// Exponentials, and reductions over the rows of an accumulator.
#pragma once

#include "mma.cuh"

namespace sdpt_ext::cuda {

constexpr float kInfinity = __builtin_huge_valf();

// exp(x): one instruction where the result is rounded to 16 bits anyway.
template <typename Element>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (sizeof(Element) == 2) {
    return ptx::exp2(x * 1.4426950408889634f);
  } else {
    return expf(x);
  }
}

// The log-sum-exp of logits of which there may be none: then +infinity, so that exp(logit - lse) is 0.
__device__ __forceinline__ float log_sum_exp(float maximum, float sum) {
  return sum > 0.f ? maximum + logf(sum) : kInfinity;
}

__device__ __forceinline__ float inverse_or_zero(float sum) {
  return sum > 0.f ? 1.f / sum : 0.f;
}

// A maximum that can be subtracted: rows without any visible logit have -infinity.
__device__ __forceinline__ float finite(float maximum) {
  return maximum == -kInfinity ? 0.f : maximum;
}

struct Maximum {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};

// Combines the values that the threads of each row hold; all of them get the result. Contains one barrier; scratch
// (kWarpColumns, kRows) must not be in use by an earlier call.
template <int kRows, typename Combine>
__device__ __forceinline__ void reduce_rows(float (&value)[kRowsOfThread], float* scratch, const Combine& combine) {
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    value[i] = combine(value[i], __shfl_xor_sync(kAllLanes, value[i], 1));
    value[i] = combine(value[i], __shfl_xor_sync(kAllLanes, value[i], 2));
    if (lane() % 4 == 0) {
      scratch[warp_column() * kRows + row_of_thread(i)] = value[i];
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    value[i] = scratch[row_of_thread(i)];
#pragma unroll
    for (int column = 1; column < kWarpColumns; ++column) {
      value[i] = combine(value[i], scratch[column * kRows + row_of_thread(i)]);
    }
  }
}

// The threads that speak for their rows after reduce_rows.
__device__ __forceinline__ bool speaks_for_row() {
  return warp_column() == 0 && lane() % 4 == 0;
}

}  // namespace sdpt_ext::cuda
