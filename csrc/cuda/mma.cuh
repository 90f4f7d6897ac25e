// Products of tiles by one thread block: tensor cores for 16-bit elements, plain multiply-adds for float32.
//
// Warps form a grid of (rows / 32) x 4. A warp owns 32 rows and a quarter of the columns, as blocks of (16, 8); in each
// block, lane l holds columns 2 (l % 4) and 2 (l % 4) + 1 of the rows l / 4 and l / 4 + 8.
#pragma once

#include "tile.cuh"

namespace sdpt_ext::cuda {

constexpr int kWarpRows = 32;
constexpr int kWarpColumns = 4;  // warps side by side
constexpr int kRowsOfThread = 4;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp_row() { return threadIdx.x / 32 / kWarpColumns; }
__device__ __forceinline__ int warp_column() { return threadIdx.x / 32 % kWarpColumns; }

// The i-th of the four rows that a thread holds elements of.
__device__ __forceinline__ int row_of_thread(int i) { return warp_row() * kWarpRows + i * 8 + lane() / 4; }

// The part of a (rows, kColumns) matrix that one thread holds.
template <int kColumns, typename Sum = float>
struct Accumulator {
  static constexpr int kBlocks = kColumns / kWarpColumns / 8;
  static_assert(kColumns % (8 * kWarpColumns) == 0, "every warp needs whole blocks of columns");

  Sum block[2][kBlocks][4];

  // Row i of the thread's four, block j, k-th of two neighbouring columns.
  __device__ Sum& operator()(int i, int j, int k) { return block[i / 2][j][i % 2 * 2 + k]; }
  __device__ const Sum& operator()(int i, int j, int k) const { return block[i / 2][j][i % 2 * 2 + k]; }
  __device__ static int column(int j) { return (warp_column() * kBlocks + j) * 8 + lane() % 4 * 2; }

  __device__ void clear() {
    for_each([](Sum& value, int, int) { value = 0; });
  }
  // function(element, row of the thread's four, column)
  template <typename Function>
  __device__ __forceinline__ void for_each(const Function& function) {
    for_each_pair([&](Sum& first, Sum& second, int i, int column) {
      function(first, i, column);
      function(second, i, column + 1);
    });
  }
  // function(element, its right neighbour, row of the thread's four, column)
  template <typename Function>
  __device__ __forceinline__ void for_each_pair(const Function& function) {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int i = 0; i < kRowsOfThread; ++i) {
        function((*this)(i, j, 0), (*this)(i, j, 1), i, column(j));
      }
    }
  }
};

// c += a[:, a_column : a_column + depth] b^T, with b (kColumns, depth).
template <int kDepth, typename Element, int kA, int kB, int kColumns>
__device__ __forceinline__ void multiply_transposed(Accumulator<kColumns>& c,
                                                    Tile<Element, kA> a,
                                                    int a_column,
                                                    Tile<Element, kB> b) {
  constexpr int kBlocks = Accumulator<kColumns>::kBlocks;
  const int a_row = warp_row() * kWarpRows + lane() % 16, b_row = warp_column() * kBlocks * 8 + lane() % 8;
#pragma unroll 2
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t left[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ptx::ldmatrix_x4(left[i], a.chunk(a_row + 16 * i, a_column + k + lane() / 16 * 8));
    }
#pragma unroll
    for (int j = 0; j + 1 < kBlocks; j += 2) {
      uint32_t right[4];
      ptx::ldmatrix_x4(right, b.chunk(b_row + (j + lane() / 16) * 8, k + lane() / 8 % 2 * 8));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::mma(c.block[i][j], left[i], right[0], right[1], Element{});
        ptx::mma(c.block[i][j + 1], left[i], right[2], right[3], Element{});
      }
    }
    if constexpr (kBlocks % 2 == 1) {
      uint32_t right[2];
      ptx::ldmatrix_x2(right, b.chunk(b_row + (kBlocks - 1) * 8, k + lane() / 8 % 2 * 8));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::mma(c.block[i][kBlocks - 1], left[i], right[0], right[1], Element{});
      }
    }
  }
}

// c += a[:, a_column : a_column + depth] b, with b (depth, kColumns).
template <int kDepth, typename Element, int kA, int kColumns>
__device__ __forceinline__ void multiply(Accumulator<kColumns>& c,
                                         Tile<Element, kA> a,
                                         int a_column,
                                         Tile<Element, kColumns> b) {
  constexpr int kBlocks = Accumulator<kColumns>::kBlocks;
  static_assert(kBlocks % 2 == 0, "blocks of columns are loaded in pairs");
  const int a_row = warp_row() * kWarpRows + lane() % 16, b_column = warp_column() * kBlocks * 8 + lane() / 16 * 8;
#pragma unroll 2
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t left[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ptx::ldmatrix_x4(left[i], a.chunk(a_row + 16 * i, a_column + k + lane() / 16 * 8));
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

// The float32 forms: the same ownership of elements, four steps of depth per 16-byte read.
template <int kDepth, int kA, int kB, int kColumns>
__device__ __forceinline__ void multiply_transposed(Accumulator<kColumns>& c,
                                                    Tile<float, kA> a,
                                                    int a_column,
                                                    Tile<float, kB> b) {
#pragma unroll 1
  for (int k = 0; k < kDepth; k += 4) {
    float4 left[kRowsOfThread];
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      left[i] = *reinterpret_cast<const float4*>(a.chunk(row_of_thread(i), a_column + k));
    }
#pragma unroll
    for (int j = 0; j < Accumulator<kColumns>::kBlocks; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float4 right = *reinterpret_cast<const float4*>(b.chunk(c.column(j) + e, k));
#pragma unroll
        for (int i = 0; i < kRowsOfThread; ++i) {
          float& sum = c(i, j, e);
          sum = fmaf(left[i].x, right.x, sum);
          sum = fmaf(left[i].y, right.y, sum);
          sum = fmaf(left[i].z, right.z, sum);
          sum = fmaf(left[i].w, right.w, sum);
        }
      }
    }
  }
}

template <int kDepth, int kA, int kColumns>
__device__ __forceinline__ void multiply(Accumulator<kColumns>& c,
                                         Tile<float, kA> a,
                                         int a_column,
                                         Tile<float, kColumns> b) {
#pragma unroll 1
  for (int k = 0; k < kDepth; k += 4) {
    float left[kRowsOfThread][4];
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const float4 chunk = *reinterpret_cast<const float4*>(a.chunk(row_of_thread(i), a_column + k));
      left[i][0] = chunk.x, left[i][1] = chunk.y, left[i][2] = chunk.z, left[i][3] = chunk.w;
    }
#pragma unroll
    for (int j = 0; j < Accumulator<kColumns>::kBlocks; ++j) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const float2 right = *reinterpret_cast<const float2*>(b.at(k + step, c.column(j)));
#pragma unroll
        for (int i = 0; i < kRowsOfThread; ++i) {
          c(i, j, 0) = fmaf(left[i][step], right.x, c(i, j, 0));
          c(i, j, 1) = fmaf(left[i][step], right.y, c(i, j, 1));
        }
      }
    }
  }
}

}  // namespace sdpt_ext::cuda
