#include "softmax_kernels.h"

#include "mix.h"

#define SDPT_EXT_LOOPS "softmax_loops.inc"
#include "multiversion.inc"

namespace sdpt_ext::cpu {

template <typename Number>
const SoftmaxKernels<Number>& softmax_kernels() {
  return SDPT_EXT_BEST(kernels<Number>);
}

template const SoftmaxKernels<float>& softmax_kernels<float>();
template const SoftmaxKernels<double>& softmax_kernels<double>();

const RoundingKernels& rounding_kernels() { return SDPT_EXT_BEST(rounding); }

}  // namespace sdpt_ext::cpu
