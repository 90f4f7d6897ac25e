// The bijection that makes random bits of counters; csrc/cuda/dropout.cuh and sdpt_ext/ops/dropout.py hold it too.
#pragma once

#include <cstdint>

namespace sdpt_ext::cpu {

// Half of the bits change when one does.
inline uint32_t mix(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

}  // namespace sdpt_ext::cpu
