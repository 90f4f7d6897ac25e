// The layer norm of a residual block.
#pragma once

#include <cstdint>
#include <vector>

#include "operands.h"
#include "vector_kernels.h"

namespace sdpt_ext::cpu {

// x + offset + f(x) for x = layer_norm(v); all tensors are (width).
struct Residual {
  const Tensor &weight, &bias, &offset;
  double epsilon;
};

// Of rows stored as Storage; bfloat16 ones are computed with in float32.
template <typename Storage>
class LayerNorm {
  using Number = std::conditional_t<std::is_same_v<Storage, BFloat16>, float, Storage>;

 public:
  explicit LayerNorm(const Residual& residual)
      : weight_(numbers(residual.weight)),
        bias_(numbers(residual.bias)),
        epsilon_(static_cast<Number>(residual.epsilon)) {}

  // out and in are contiguous (rows, width).
  void operator()(Storage* out, const Storage* in, int64_t rows) const {
    const int64_t width = static_cast<int64_t>(weight_.size());
    std::vector<Number> wide(kIsWide ? 0 : width);
    for (int64_t row = 0; row < rows; ++row, in += width, out += width) {
      if constexpr (kIsWide) {
        kernels_.normalise(out, in, weight_.data(), bias_.data(), epsilon_, width);
      } else {
        std::copy_n(in, width, wide.data());
        kernels_.normalise(wide.data(), wide.data(), weight_.data(), bias_.data(), epsilon_, width);
        store_row(out, wide.data(), width);
      }
    }
  }

 private:
  static constexpr bool kIsWide = std::is_same_v<Storage, Number>;

  static std::vector<Number> numbers(const Tensor& tensor) {
    const Tensor packed = torch::stable::contiguous(tensor);
    const auto* data = static_cast<const Storage*>(packed.const_data_ptr());
    return {data, data + packed.numel()};
  }

  const VectorKernels<Number>& kernels_ = vector_kernels<Number>();
  std::vector<Number> weight_, bias_;
  Number epsilon_;
};

}  // namespace sdpt_ext::cpu
