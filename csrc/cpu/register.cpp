// The CPU implementations.
#include <torch/csrc/stable/library.h>

#include "../ops.h"

STABLE_TORCH_LIBRARY_IMPL(sdpt_ext, CPU, m) {
  m.impl("bi_attention", TORCH_BOX(&sdpt_ext::cpu::bi_attention));
  m.impl("bi_attention_backward", TORCH_BOX(&sdpt_ext::cpu::bi_attention_backward));
  m.impl("bi_attention_residual", TORCH_BOX(&sdpt_ext::cpu::bi_attention_residual));
  m.impl("deform_conv2d", TORCH_BOX(&sdpt_ext::cpu::deform_conv2d));
  m.impl("deform_conv2d_backward_data", TORCH_BOX(&sdpt_ext::cpu::deform_conv2d_backward_data));
  m.impl("deform_conv2d_backward_weight", TORCH_BOX(&sdpt_ext::cpu::deform_conv2d_backward_weight));
  m.impl("nms", TORCH_BOX(&sdpt_ext::cpu::nms));
}
