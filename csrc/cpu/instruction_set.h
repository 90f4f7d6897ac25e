// Which vector instructions this processor runs, of those that were compiled.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SDPT_EXT_MULTIVERSION 1
#else
#define SDPT_EXT_MULTIVERSION 0
#endif

namespace sdpt_ext::cpu {

enum class InstructionSet { kGeneric, kAvx2, kAvx512, kAvx512Bf16 };

// The best set; SDPT_EXT_CPU_CAPABILITY may name a lesser one, for tests.
InstructionSet instruction_set();

// "generic", "avx2", "avx512" or "avx512_bf16".
const char* instruction_set_name();

// All that were compiled, separated by spaces.
const char* compiled_instruction_sets();

}  // namespace sdpt_ext::cpu
