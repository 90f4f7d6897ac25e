// Schemas of every operator, stated once. Each device registers its implementations in a file of its own.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sdpt_ext, m) {
  // -> y, u, mass, image_lse, text_lse. tf32: products of float32 may be of TF32, where a device has them
  m.def(
      "bi_attention(Tensor x, Tensor keys, Tensor key_bias, Tensor values, Tensor? prompts, Tensor? image_mask, "
      "int num_text, float dropout_p, SymInt seed, bool tf32=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  // -> gradients of x, keys, key_bias, values, prompts
  m.def(
      "bi_attention_backward(Tensor grad_y, Tensor grad_u, Tensor grad_mass, Tensor x, Tensor keys, Tensor key_bias, "
      "Tensor values, Tensor? prompts, Tensor? image_mask, Tensor u, Tensor mass, Tensor image_lse, Tensor text_lse, "
      "int num_text, float dropout_p, SymInt seed, bool tf32=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  // x = layer_norm(v) -> x + offset + y, u, mass; without gradients, and not on every device
  m.def(
      "bi_attention_residual(Tensor v, Tensor norm_weight, Tensor norm_bias, float norm_epsilon, Tensor keys, "
      "Tensor key_bias, Tensor values, Tensor offset, Tensor? prompts, Tensor? image_mask, int num_text) "
      "-> (Tensor, Tensor, Tensor)");
  // Prompt rows offset + tokens weight^T, behind the text -> keys, key_bias, values, image rows; not on every device
  m.def(
      "join_prompts(Tensor keys, Tensor key_bias, Tensor values, Tensor tokens, Tensor weight, Tensor offset) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  // -> gradient of the tokens
  m.def(
      "join_prompts_backward(Tensor grad_keys, Tensor grad_bias, Tensor grad_values, Tensor grad_image_rows, "
      "Tensor weight) -> Tensor");
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
