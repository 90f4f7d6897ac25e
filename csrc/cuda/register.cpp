// The CUDA implementations. SDPT_EXT_DEVICE_KEY=CPU registers them for CPU tensors, where a simulator runs them.
#include <torch/csrc/stable/library.h>

#include "../ops.h"
#include "capability.h"

#ifndef SDPT_EXT_DEVICE_KEY
#define SDPT_EXT_DEVICE_KEY CUDA
#endif

// That it exists tells Python which kind of device these kernels serve. Nothing calls it.
STABLE_TORCH_LIBRARY_FRAGMENT(sdpt_ext, m) {
  m.def("cuda_kernels_on_" C10_STRINGIZE(SDPT_EXT_DEVICE_KEY) "() -> ()");
  // -> what held before. Python takes a Hopper's own kernels away where they prove to be wrong.
  m.def("allow_hopper_kernels(bool allowed) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(sdpt_ext, CompositeExplicitAutograd, m) {
  m.impl("allow_hopper_kernels", TORCH_BOX(&sdpt_ext::cuda::allow_hopper_kernels));
}

STABLE_TORCH_LIBRARY_IMPL(sdpt_ext, SDPT_EXT_DEVICE_KEY, m) {
  m.impl("bi_attention", TORCH_BOX(&sdpt_ext::cuda::bi_attention));
  m.impl("bi_attention_backward", TORCH_BOX(&sdpt_ext::cuda::bi_attention_backward));
  m.impl("join_prompts", TORCH_BOX(&sdpt_ext::cuda::join_prompts));
  m.impl("join_prompts_backward", TORCH_BOX(&sdpt_ext::cuda::join_prompts_backward));
  m.impl("deform_conv2d", TORCH_BOX(&sdpt_ext::cuda::deform_conv2d));
  m.impl("deform_conv2d_backward_data", TORCH_BOX(&sdpt_ext::cuda::deform_conv2d_backward_data));
  m.impl("deform_conv2d_backward_weight", TORCH_BOX(&sdpt_ext::cuda::deform_conv2d_backward_weight));
  m.impl("nms", TORCH_BOX(&sdpt_ext::cuda::nms));
}
