// The host side of the compiled package: what was built, and what the kernels plan. No tensor passes through here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>

#include "../cpu/instruction_set.h"
#include "deform_plan.h"

namespace py = pybind11;

namespace {

using Pair = std::pair<int64_t, int64_t>;

py::dict build_info() {
  py::dict info;
  info["torch"] = SDPT_EXT_TORCH_VERSION;
  info["torch_target"] = SDPT_EXT_TORCH_TARGET;
  info["compiler"] = __VERSION__;
  info["flags"] = SDPT_EXT_FLAGS;
  info["cuda_architectures"] = SDPT_EXT_CUDA_ARCHITECTURES;
  info["cpu_instruction_sets"] = sdpt_ext::cpu::compiled_instruction_sets();
  info["cpu_instruction_set"] = sdpt_ext::cpu::instruction_set_name();
  return info;
}

py::dict to_dict(const sdpt_ext::host::Cost& cost) {
  py::dict result;
  result["flops"] = cost.flops;
  result["bytes"] = cost.bytes;
  result["tasks"] = cost.tasks;
  result["workspace_bytes"] = cost.workspace_bytes;
  return result;
}

py::dict deform_conv2d_plan(int64_t batch,
                            int64_t channels,
                            Pair size,
                            int64_t out_channels,
                            Pair kernel,
                            Pair stride,
                            Pair padding,
                            int64_t element_size,
                            int64_t threads) {
  sdpt_ext::DeformShape shape{};
  shape.batch = batch, shape.channels = channels, shape.out_channels = out_channels;
  shape.height = size.first, shape.width = size.second;
  shape.kernel_h = kernel.first, shape.kernel_w = kernel.second;
  shape.stride_h = stride.first, shape.stride_w = stride.second;
  shape.pad_h = padding.first, shape.pad_w = padding.second;
  if (std::min({batch,
                channels,
                size.first,
                size.second,
                out_channels,
                kernel.first,
                kernel.second,
                stride.first,
                stride.second,
                element_size,
                threads}) < 1) {
    throw py::value_error("deform_conv2d_plan: every size must be at least 1");
  }
  const sdpt_ext::host::DeformPlan plan = sdpt_ext::host::plan_deform_conv2d(shape, element_size, threads);
  py::dict result;
  result["forward"] = to_dict(plan.forward);
  result["backward"] = to_dict(plan.backward);
  return result;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "What was compiled into sdpt_ext, and what its kernels plan.";
  m.def("build_info", &build_info, "Versions, flags and architectures of this build.");
  m.def("deform_conv2d_plan",
        &deform_conv2d_plan,
        "FLOPs, bytes, tasks and workspace of the forward and backward pass.",
        py::arg("batch"),
        py::arg("channels"),
        py::arg("size"),
        py::arg("out_channels"),
        py::arg("kernel") = Pair{3, 3},
        py::arg("stride") = Pair{1, 1},
        py::arg("padding") = Pair{1, 1},
        py::arg("element_size") = 4,
        py::arg("threads") = 1);
}
