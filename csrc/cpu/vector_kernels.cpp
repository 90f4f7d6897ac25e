#include "vector_kernels.h"

#define SDPT_EXT_LOOPS "vector_loops.inc"
#include "multiversion.inc"

namespace sdpt_ext::cpu {

template <typename T>
const VectorKernels<T>& vector_kernels() {
  return SDPT_EXT_BEST(kernels<T>);
}

template const VectorKernels<float>& vector_kernels<float>();
template const VectorKernels<double>& vector_kernels<double>();

}  // namespace sdpt_ext::cpu
