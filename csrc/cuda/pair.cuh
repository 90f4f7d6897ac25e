// Two neighbouring elements, read and written at once.
#pragma once

#include "element.cuh"

namespace sdpt_ext::cuda {

__device__ __forceinline__ float2 pair_of(float a, float b) { return make_float2(a, b); }
__device__ __forceinline__ double2 pair_of(double a, double b) { return make_double2(a, b); }

__device__ __forceinline__ void store_pair(float* target, float a, float b) {
  *reinterpret_cast<float2*>(target) = make_float2(a, b);
}
__device__ __forceinline__ void store_pair(Tf32* target, float a, float b) { store_pair(&target->value, a, b); }
__device__ __forceinline__ void store_pair(double* target, double a, double b) {
  *reinterpret_cast<double2*>(target) = make_double2(a, b);
}
__device__ __forceinline__ void store_pair(__half* target, float a, float b) {
  *reinterpret_cast<__half2*>(target) = __floats2half2_rn(a, b);
}
__device__ __forceinline__ void store_pair(__nv_bfloat16* target, float a, float b) {
  *reinterpret_cast<__nv_bfloat162*>(target) = __floats2bfloat162_rn(a, b);
}

__device__ __forceinline__ float2 load_pair(const float* source) {
  return *reinterpret_cast<const float2*>(source);
}
__device__ __forceinline__ float2 load_pair(const Tf32* source) { return load_pair(&source->value); }
__device__ __forceinline__ double2 load_pair(const double* source) {
  return *reinterpret_cast<const double2*>(source);
}
__device__ __forceinline__ float2 load_pair(const __half* source) {
  return __half22float2(*reinterpret_cast<const __half2*>(source));
}
__device__ __forceinline__ float2 load_pair(const __nv_bfloat16* source) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(source));
}

}  // namespace sdpt_ext::cuda
