// The product that only the deformable convolution needs: its left factor is stored transposed.
#pragma once

#include "mma.cuh"

namespace sdpt_ext::cuda {

// A block of threads multiplies 64 rows, or 128 where there are enough: it then reads the other factor half as often.
// One step of depth is 64 bytes of a row.
constexpr int kTileRows = 64;
constexpr int kTallRows = 128;
template <int kRows>
constexpr int kThreadsOf = kRows / kWarpRows * kWarpColumns * 32;
constexpr int kThreads = kThreadsOf<kTileRows>;
// Blocks that a multiprocessor holds.
template <int kRows>
constexpr int kResident = kTallRows / kRows;
template <typename Element>
constexpr int kStepDepth = 64 / sizeof(Element);

template <int kDepth, typename Sum, int kRows, int kColumns>
__device__ __forceinline__ void multiply_left_transposed_plainly(Accumulator<kColumns, Sum>& c,
                                                                 Tile<Sum, kRows> a,
                                                                 Tile<Sum, kColumns> b) {
#pragma unroll 2
  for (int k = 0; k < kDepth; ++k) {
    Sum left[kRowsOfThread];
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      left[i] = *a.at(k, row_of_thread(i));
    }
    c.for_each([&](Sum& sum, int i, int column) { sum = fma(left[i], *b.at(k, column), sum); });
  }
}

template <int kDepth, typename Element, int kRows, int kColumns>
__device__ __forceinline__ void multiply_left_transposed_on_tensor_cores(Accumulator<kColumns>& c,
                                                                         Tile<Element, kRows> a,
                                                                         Tile<Element, kColumns> b) {
  constexpr int kBlocks = Accumulator<kColumns>::kBlocks;
  static_assert(kBlocks % 2 == 0, "blocks of columns are loaded in pairs");
  const int a_column = warp_row() * kWarpRows + lane() / 8 % 2 * 8;
  const int b_column = warp_column() * kBlocks * 8 + lane() / 16 * 8;
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t left[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ptx::ldmatrix_x4_transposed(left[i], a.address(k + lane() / 16 * 8 + lane() % 8, a_column + 16 * i));
    }
#pragma unroll
    for (int j = 0; j < kBlocks; j += 2) {
      uint32_t right[4];
      ptx::ldmatrix_x4_transposed(right, b.address(k + lane() % 16, b_column + j * 8));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::mma(c.block[i][j], left[i], right[0], right[1], Element{});
        ptx::mma(c.block[i][j + 1], left[i], right[2], right[3], Element{});
      }
    }
  }
}

// c += a^T b, with a (depth, kRows) and b (depth, kColumns).
template <int kDepth, typename Sum, typename Element, int kRows, int kColumns>
__device__ __forceinline__ void multiply_left_transposed(Accumulator<kColumns, Sum>& c,
                                                         Tile<Element, kRows> a,
                                                         Tile<Element, kColumns> b) {
  if constexpr (sizeof(Element) == 2) {
    multiply_left_transposed_on_tensor_cores<kDepth>(c, a, b);
  } else {
    multiply_left_transposed_plainly<kDepth>(c, a, b);
  }
}

}  // namespace sdpt_ext::cuda
