#include "instruction_set.h"

#include <cstdlib>
#include <cstring>

namespace sdpt_ext::cpu {
namespace {

constexpr const char* kNames[] = {"generic", "avx2", "avx512", "avx512_bf16"};

InstructionSet supported() {
#if SDPT_EXT_MULTIVERSION
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma")) {
    return __builtin_cpu_supports("avx512bf16") ? InstructionSet::kAvx512Bf16 : InstructionSet::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return InstructionSet::kAvx2;
  }
#endif
  return InstructionSet::kGeneric;
}

InstructionSet detect() {
  const InstructionSet best = supported();
  const char* wanted = std::getenv("SDPT_EXT_CPU_CAPABILITY");
  for (int set = 0; wanted && set < static_cast<int>(best); ++set) {
    if (std::strcmp(wanted, kNames[set]) == 0) {
      return static_cast<InstructionSet>(set);
    }
  }
  return best;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = detect();
  return chosen;
}

const char* instruction_set_name() { return kNames[static_cast<int>(instruction_set())]; }

const char* compiled_instruction_sets() {
  return SDPT_EXT_MULTIVERSION ? "generic avx2 avx512 avx512_bf16" : "generic";
}

}  // namespace sdpt_ext::cpu
