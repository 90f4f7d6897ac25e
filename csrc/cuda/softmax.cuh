// Exponentials, and reductions over the rows of an accumulator.
#pragma once

#include "mma.cuh"

namespace sdpt_ext::cuda {

constexpr float kInfinity = __builtin_huge_valf();

// exp(x): one instruction where the result is rounded anyway.
template <typename Element>
__device__ __forceinline__ NumberOf<Element> exponential(NumberOf<Element> x) {
  if constexpr (kOnTensorCores<Element>) {
    return ptx::exp2(x * 1.4426950408889634f);
  } else {
    return exp(x);
  }
}

// The log-sum-exp of logits of which there may be none: then +infinity, so that exp(logit - lse) is 0.
template <typename Number>
__device__ __forceinline__ Number log_sum_exp(Number maximum, Number sum) {
  return sum == 0 ? Number(kInfinity) : maximum + log(sum);
}

template <typename Number>
__device__ __forceinline__ Number inverse_or_zero(Number sum) {
  return sum == 0 ? Number(0) : 1 / sum;
}

// A maximum that can be subtracted: rows without any visible logit have -infinity.
template <typename Number>
__device__ __forceinline__ Number finite(Number maximum) {
  return maximum == -kInfinity ? Number(0) : maximum;
}

struct Maximum {
  template <typename Number>
  __device__ Number operator()(Number a, Number b) const {
    return fmax(a, b);
  }
};

struct Sum {
  template <typename Number>
  __device__ Number operator()(Number a, Number b) const {
    return a + b;
  }
};

// Combines the values that the threads of each row hold; all of them get the result. Contains one barrier; scratch
// (kWarpColumns, kRows) must not be in use by an earlier call.
template <int kRows, typename Number, typename Combine>
__device__ __forceinline__ void reduce_rows(Number (&value)[kRowsOfThread], Number* scratch, const Combine& combine) {
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
