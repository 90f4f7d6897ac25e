// Which kernels may run, where a device has more than one version of them.
#pragma once

namespace sdpt_ext::cuda {

// Whether a Hopper runs kernels of its own. SDPT_EXT_CUDA_CAPABILITY=portable says no from the start.
bool hopper_kernels_allowed();

// Operator: -> what held before.
bool allow_hopper_kernels(bool allowed);

}  // namespace sdpt_ext::cuda
