// Sums that come out the same in whatever order threads add: integers, in units chosen so that no sum can overflow.
#pragma once

#include <cmath>
#include <cstdint>

namespace sdpt_ext::cuda {

using FixedPoint = unsigned long long;  // two's complement

// Bits of the absolute value as a float64. They order like the values, and NaN comes last.
template <typename Element>
__device__ FixedPoint magnitude_bits(Element value) {
  return __double_as_longlong(fabs(static_cast<double>(value)));
}

// Raises *largest to the largest magnitude among the values.
template <typename Element>
__global__ void find_largest(const Element* values, int64_t count, FixedPoint* largest) {
  FixedPoint found = 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    found = max(found, magnitude_bits(values[i]));
  }
  atomicMax(largest, found);
}

// Numbers are stored in units of 1 / scale, a power of two. Not finite if the bound on the sums is not.
template <typename Sum>
class FixedPointScale {
 public:
  // bound: no sum of absolute values is larger.
  __device__ explicit FixedPointScale(double bound) {
    constexpr int kLargestExponent = sizeof(Sum) == 8 ? 1000 : 126;
    const int exponent = bound > 0 ? min(61 - ilogb(bound), kLargestExponent) : 0;
    scale_ = isfinite(bound) ? static_cast<Sum>(scalbn(1.0, exponent)) : static_cast<Sum>(NAN);
  }

  __device__ void add(FixedPoint* sum, Sum value) const {
    atomicAdd(sum, static_cast<FixedPoint>(rounded(value * scale_)));
  }
  __device__ Sum read(FixedPoint sum) const { return static_cast<Sum>(static_cast<int64_t>(sum)) / scale_; }

 private:
  __device__ static long long rounded(float value) { return __float2ll_rn(value); }
  __device__ static long long rounded(double value) { return __double2ll_rn(value); }

  Sum scale_;
};

}  // namespace sdpt_ext::cuda
