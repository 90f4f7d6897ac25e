// Sizes of one deformable convolution. Knows nothing of torch, so that the host module can plan with it.
#pragma once

#include <cstdint>

namespace sdpt_ext {

struct DeformShape {
  int64_t batch, channels, height, width;
  int64_t out_channels, kernel_h, kernel_w;
  int64_t stride_h, stride_w, pad_h, pad_w;
  // Numbers per sample in the offset and mask memory; may exceed what the output needs.
  int64_t offset_numel, mask_numel;

  int64_t out_h() const { return output_size(height, kernel_h, stride_h, pad_h); }
  int64_t out_w() const { return output_size(width, kernel_w, stride_w, pad_w); }
  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t positions() const { return out_h() * out_w(); }
  bool empty() const { return batch == 0 || out_channels == 0 || positions() == 0; }

 private:
  static int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad) {
    const int64_t span = size + 2 * pad - kernel;
    return span < 0 ? 0 : span / stride + 1;
  }
};

}  // namespace sdpt_ext
