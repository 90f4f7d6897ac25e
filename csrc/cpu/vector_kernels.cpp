#include "vector_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SDPT_EXT_MULTIVERSION 1
#else
#define SDPT_EXT_MULTIVERSION 0
#endif

namespace sdpt_ext::cpu {

namespace generic {
#include "vector_loops.inc"
}

#if SDPT_EXT_MULTIVERSION
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "vector_loops.inc"
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,fma,prefer-vector-width=512")
namespace avx512 {
#include "vector_loops.inc"
}
#pragma GCC pop_options
#endif

namespace {

enum class InstructionSet { kGeneric, kAvx2, kAvx512 };

InstructionSet detect() {
#if SDPT_EXT_MULTIVERSION
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma")) {
    return InstructionSet::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return InstructionSet::kAvx2;
  }
#endif
  return InstructionSet::kGeneric;
}

InstructionSet instruction_set() {
  static const InstructionSet best = detect();
  return best;
}

}  // namespace

template <typename T>
const VectorKernels<T>& vector_kernels() {
#if SDPT_EXT_MULTIVERSION
  if (instruction_set() == InstructionSet::kAvx512) {
    return avx512::kernels<T>;
  }
  if (instruction_set() == InstructionSet::kAvx2) {
    return avx2::kernels<T>;
  }
#endif
  return generic::kernels<T>;
}

template const VectorKernels<float>& vector_kernels<float>();
template const VectorKernels<double>& vector_kernels<double>();

const char* vector_instruction_set() {
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx2:
      return "avx2";
    default:
      return "generic";
  }
}

const char* compiled_instruction_sets() { return SDPT_EXT_MULTIVERSION ? "generic avx2 avx512" : "generic"; }

}  // namespace sdpt_ext::cpu
