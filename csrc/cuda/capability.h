// Which kernels may run, where a device has more than one version of them.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace sdpt_ext::cuda {

// Whether a Hopper runs kernels of its own. SDPT_EXT_CUDA_CAPABILITY=portable says no from the start.
inline std::atomic<bool>& hopper_kernels_allowed() {
  static const char* wanted = std::getenv("SDPT_EXT_CUDA_CAPABILITY");
  static std::atomic<bool> allowed{wanted == nullptr || std::strcmp(wanted, "portable") != 0};
  return allowed;
}

// Operator: -> what held before.
inline bool allow_hopper_kernels(bool allowed) { return hopper_kernels_allowed().exchange(allowed); }

}  // namespace sdpt_ext::cuda
