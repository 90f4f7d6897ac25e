#include "panel_product.h"

#define SDPT_EXT_LOOPS "panel_product.inc"
#include "multiversion.inc"

#if SDPT_EXT_MULTIVERSION
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,fma,prefer-vector-width=512")
#define SDPT_EXT_VECTOR_BYTES 64
namespace sdpt_ext::cpu::avx512_bf16 {
#include "panel_product.inc"

template <>
struct Lanes<Bf16Pair> {
  using Sum = typename Vector<float>::Full;
  static constexpr int kWidth = SDPT_EXT_VECTOR_BYTES / sizeof(Bf16Pair);

  static void add_product(Sum& sum, Bf16Pair left, const Bf16Pair* right) {
    sum = (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(left.bits), load<__m512bh>(right));
  }
};
}  // namespace sdpt_ext::cpu::avx512_bf16
#undef SDPT_EXT_VECTOR_BYTES
#pragma GCC pop_options
#endif

namespace sdpt_ext::cpu {

template <typename Element>
const PanelProduct<Element>& panel_product() {
  return SDPT_EXT_BEST(product<Element>);
}

template const PanelProduct<float>& panel_product<float>();
template const PanelProduct<double>& panel_product<double>();

#if SDPT_EXT_MULTIVERSION
template <>
const PanelProduct<Bf16Pair>& panel_product<Bf16Pair>() {
  return avx512_bf16::product<Bf16Pair>;
}
#endif

bool multiplies_bf16_pairs() { return instruction_set() == InstructionSet::kAvx512Bf16; }

}  // namespace sdpt_ext::cpu
