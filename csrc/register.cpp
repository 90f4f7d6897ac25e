// Schemas of every operator, stated once, and the CPU implementations.
//
// Another device adds its own file with STABLE_TORCH_LIBRARY_IMPL(sdpt_ext, SDPT_EXT_DEVICE_KEY, m).
#include <torch/csrc/stable/library.h>

#include "ops.h"

STABLE_TORCH_LIBRARY(sdpt_ext, m) {
  m.def(
      "deform_conv2d(Tensor input, Tensor offset, Tensor? mask, Tensor weight, Tensor? bias, "
      "int[] stride, int[] padding) -> Tensor");
  m.def(
      "deform_conv2d_backward_data(Tensor grad_output, Tensor input, Tensor offset, Tensor? mask, Tensor weight, "
      "int[] stride, int[] padding, bool needs_input, bool needs_offset_or_mask) -> (Tensor, Tensor, Tensor)");
  m.def(
      "deform_conv2d_backward_weight(Tensor grad_output, Tensor input, Tensor offset, Tensor? mask, Tensor weight, "
      "int[] stride, int[] padding) -> Tensor");
  m.def("nms(Tensor boxes, Tensor scores, Tensor labels, float iou_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sdpt_ext, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&sdpt_ext::cpu::deform_conv2d));
  m.impl("deform_conv2d_backward_data", TORCH_BOX(&sdpt_ext::cpu::deform_conv2d_backward_data));
  m.impl("deform_conv2d_backward_weight", TORCH_BOX(&sdpt_ext::cpu::deform_conv2d_backward_weight));
  m.impl("nms", TORCH_BOX(&sdpt_ext::cpu::nms));
}
