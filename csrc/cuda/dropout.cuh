// A counter-based generator: the same weight is dropped on every device and again in backward, from (seed, position).
#pragma once

#include <cstdint>

namespace sdpt_ext::cuda {

enum Direction : uint32_t { kImage = 0, kText = 1 };

template <typename Number>
struct Dropout {
  uint32_t seed_low, seed_high;
  uint32_t threshold;  // 0: nothing is dropped
  Number scale;        // of what is kept

  static Dropout with(double probability, int64_t seed) {
    Dropout dropout{};
    dropout.seed_low = static_cast<uint32_t>(seed);
    dropout.seed_high = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
    dropout.threshold = probability < 1.0 ? static_cast<uint32_t>(probability * 4294967296.0) : 0xffffffffu;
    dropout.scale = probability < 1.0 ? static_cast<Number>(1.0 / (1.0 - probability)) : Number(0);
    return dropout;
  }

  __device__ bool active() const { return threshold != 0; }

  __device__ static uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
  }

  // position: of the text token in a tensor of shape (batch, heads, tokens); count: how many there are.
  __device__ uint32_t key(Direction direction, uint32_t position, uint32_t count) const {
    return mix(mix(mix(seed_low) ^ seed_high) + direction * count + position);
  }

  // What the weight of an image row is multiplied by; prompt k is row N + k.
  __device__ Number factor(uint32_t key, uint32_t row) const {
    return mix(key ^ row * 0x9e3779b9u) >= threshold ? scale : Number(0);
  }
};

}  // namespace sdpt_ext::cuda
