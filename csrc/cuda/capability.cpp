#include "capability.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace sdpt_ext::cuda {
namespace {

std::atomic<bool>& hopper_allowed() {
  static const char* wanted = std::getenv("SDPT_EXT_CUDA_CAPABILITY");
  static std::atomic<bool> allowed{wanted == nullptr || std::strcmp(wanted, "portable") != 0};
  return allowed;
}

}  // namespace

bool hopper_kernels_allowed() { return hopper_allowed(); }

bool allow_hopper_kernels(bool allowed) { return hopper_allowed().exchange(allowed); }

}  // namespace sdpt_ext::cuda
