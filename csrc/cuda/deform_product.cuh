// The products that only the deformable convolution needs: float64, and a left factor that is stored transposed.
#pragma once

#include "deform_sample.cuh"
#include "mma.cuh"

namespace sdpt_ext::cuda {

// A block of threads multiplies 64 rows; one step of depth is 64 bytes of a row.
constexpr int kThreads = 256;
constexpr int kTileRows = 64;
template <typename Element>
constexpr int kStepDepth = 64 / sizeof(Element);

// c += a b^T, with b (kColumns, depth).
template <int kDepth, int kA, int kB, int kColumns>
__device__ __forceinline__ void multiply_transposed(Accumulator<kColumns, double>& c,
                                                    Tile<double, kA> a,
                                                    int a_column,
                                                    Tile<double, kB> b) {
#pragma unroll 1
  for (int k = 0; k < kDepth; ++k) {
    double left[kRowsOfThread];
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      left[i] = *a.at(row_of_thread(i), a_column + k);
    }
    c.for_each([&](double& sum, int i, int column) { sum = fma(left[i], *b.at(column, k), sum); });
  }
}

// c += a^T b, with a (depth, 64) and b (depth, kColumns).
template <int kDepth, typename Sum, int kColumns>
__device__ __forceinline__ void multiply_left_transposed(Accumulator<kColumns, Sum>& c,
                                                         Tile<Sum, kTileRows> a,
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

// The same on tensor cores.
template <int kDepth, typename Element, int kColumns, typename = std::enable_if_t<sizeof(Element) == 2>>
__device__ __forceinline__ void multiply_left_transposed(Accumulator<kColumns>& c,
                                                         Tile<Element, kTileRows> a,
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
      ptx::ldmatrix_x4_transposed(left[i], a.chunk(k + lane() / 16 * 8 + lane() % 8, a_column + 16 * i));
    }
#pragma unroll
    for (int j = 0; j < kBlocks; j += 2) {
      uint32_t right[4];
      ptx::ldmatrix_x4_transposed(right, b.chunk(k + lane() % 16, b_column + j * 8));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::mma(c.block[i][j], left[i], right[0], right[1], Element{});
        ptx::mma(c.block[i][j + 1], left[i], right[2], right[3], Element{});
      }
    }
  }
}

}  // namespace sdpt_ext::cuda
