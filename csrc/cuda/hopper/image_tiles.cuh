// How the image's rows and the prompts stream past the text.
#pragma once

#include "../bi_attention.cuh"

namespace sdpt_ext::cuda::hopper {

// Tiles of kColumns image rows, and after them of prompts, of which prompt k counts as row N + k.
template <int kColumns>
struct ImageTiles {
  const Sizes& shape;

  __device__ int of_image() const { return ceil_div(shape.image, kColumns); }
  __device__ bool is_prompt(int item) const { return item >= of_image(); }
  __device__ int first(int item) const {
    return is_prompt(item) ? shape.image + (item - of_image()) * kColumns : item * kColumns;
  }
  __device__ int rows(int item) const {
    return min(kColumns, shape.image + (is_prompt(item) ? shape.prompts : 0) - first(item));
  }
};

}  // namespace sdpt_ext::cuda::hopper
