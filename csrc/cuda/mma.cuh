// Products of tiles by one thread block: on tensor cores, or by plain multiply-adds where numbers stay exact.
//
// Warps form a grid of (rows / 32) x 4. A warp owns 32 rows and a quarter of the columns, as blocks of (16, 8); in each
// block, lane l holds columns 2 (l % 4) and 2 (l % 4) + 1 of the rows l / 4 and l / 4 + 8.
#pragma once

#include "pair.cuh"
#include "tile.cuh"

namespace sdpt_ext::cuda {

constexpr int kWarpRows = 32;
constexpr int kWarpColumns = 4;  // warps side by side
constexpr int kRowsOfThread = 4;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp_row() { return threadIdx.x / (32 * kWarpColumns); }
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

// Depth of one product on tensor cores.
template <typename Element>
constexpr int kMmaDepth = 32 / sizeof(Element);

// Tensor cores would cut digits off.
template <typename Element, int kCount>
__device__ __forceinline__ void round_operand([[maybe_unused]] uint32_t (&fragment)[kCount], Element) {
  if constexpr (std::is_same_v<Element, Tf32>) {
#pragma unroll
    for (int index = 0; index < kCount; ++index) {
      fragment[index] = ptx::round_to_tf32(fragment[index]);
    }
  }
}

// A lane reads chunks whose swizzle never changes, so that one exclusive or per step of depth finds them all.
template <int kDepth, typename Element, int kA, int kB, int kColumns>
__device__ __forceinline__ void multiply_transposed_on_tensor_cores(
    Accumulator<kColumns>& c, Tile<Element, kA> a, int a_column, Tile<Element, kB> b) {
  constexpr int kBlocks = Accumulator<kColumns>::kBlocks;
  const unsigned a_row = warp_row() * kWarpRows + lane() % 16, b_row = warp_column() * kBlocks * 8 + lane() % 8;
  const uint32_t a_address = a.row_address(a_row), a_swizzle = a.swizzle(a_row) ^ (lane() / 16 * 16);
  const uint32_t b_address = b.row_address(b_row), b_swizzle = b.swizzle(b_row) ^ (lane() / 8 % 2 * 16);
  const uint32_t pair_address = b_address + lane() / 16 * 8 * b.kRowBytes;
#pragma unroll 2
  for (int k = 0; k < kDepth; k += kMmaDepth<Element>) {
    uint32_t left[2][4];
    const uint32_t a_chunk = ((a_column + k) * sizeof(Element)) ^ a_swizzle;
    const uint32_t b_chunk = (k * sizeof(Element)) ^ b_swizzle;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ptx::ldmatrix_x4(left[i], a_address + a_chunk + i * 16 * a.kRowBytes);
      round_operand(left[i], Element{});
    }
#pragma unroll
    for (int j = 0; j + 1 < kBlocks; j += 2) {
      uint32_t right[4];
      ptx::ldmatrix_x4(right, pair_address + b_chunk + j * 8 * b.kRowBytes);
      round_operand(right, Element{});
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::mma(c.block[i][j], left[i], right[0], right[1], Element{});
        ptx::mma(c.block[i][j + 1], left[i], right[2], right[3], Element{});
      }
    }
    if constexpr (kBlocks % 2 == 1) {
      uint32_t right[2];
      ptx::ldmatrix_x2(right, b_address + b_chunk + (kBlocks - 1) * 8 * b.kRowBytes);
      round_operand(right, Element{});
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::mma(c.block[i][kBlocks - 1], left[i], right[0], right[1], Element{});
      }
    }
  }
}

template <int kDepth, typename Element, int kA, int kColumns>
__device__ __forceinline__ void multiply_on_tensor_cores(
    Accumulator<kColumns>& c, Tile<Element, kA> a, int a_column, Tile<Element, kColumns> b) {
  constexpr int kBlocks = Accumulator<kColumns>::kBlocks;
  static_assert(kBlocks % 2 == 0, "blocks of columns are loaded in pairs");
  const unsigned a_row = warp_row() * kWarpRows + lane() % 16, b_row = lane() % 16;
  const uint32_t a_address = a.row_address(a_row), a_swizzle = a.swizzle(a_row) ^ (lane() / 16 * 16);
  const uint32_t b_address = b.row_address(b_row), b_swizzle = b.swizzle(b_row) ^ (lane() / 16 * 16);
  const uint32_t b_first = warp_column() * kBlocks * 16;
#pragma unroll 2
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t left[2][4];
    const uint32_t a_chunk = ((a_column + k) * sizeof(Element)) ^ a_swizzle;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ptx::ldmatrix_x4(left[i], a_address + a_chunk + i * 16 * a.kRowBytes);
    }
#pragma unroll
    for (int j = 0; j < kBlocks; j += 2) {
      uint32_t right[4];
      ptx::ldmatrix_x4_transposed(right, b_address + k * b.kRowBytes + ((b_first + j * 16) ^ b_swizzle));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::mma(c.block[i][j], left[i], right[0], right[1], Element{});
        ptx::mma(c.block[i][j + 1], left[i], right[2], right[3], Element{});
      }
    }
  }
}

// The same of 32-bit elements, which no instruction transposes.
template <int kDepth, int kA, int kColumns>
__device__ __forceinline__ void multiply_on_tensor_cores(
    Accumulator<kColumns>& c, Tile<Tf32, kA> a, int a_column, Tile<Tf32, kColumns> b) {
  const unsigned a_row = warp_row() * kWarpRows + lane() % 16, b_row = lane() % 4;
  const uint32_t a_address = a.row_address(a_row), a_swizzle = a.swizzle(a_row) ^ (lane() / 16 * 16);
#pragma unroll 2
  for (int k = 0; k < kDepth; k += kMmaDepth<Tf32>) {
    uint32_t left[2][4];
    const uint32_t a_chunk = ((a_column + k) * sizeof(Tf32)) ^ a_swizzle;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ptx::ldmatrix_x4(left[i], a_address + a_chunk + i * 16 * a.kRowBytes);
      round_operand(left[i], Tf32{});
    }
#pragma unroll
    for (int j = 0; j < c.kBlocks; ++j) {
      const unsigned column = c.column(j) - lane() % 4 * 2 + lane() / 4;
      uint32_t right[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        right[half] = __float_as_uint(b.at(k + half * 4 + b_row, column)->value);
      }
      round_operand(right, Tf32{});
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::mma(c.block[i][j], left[i], right[0], right[1], Tf32{});
      }
    }
  }
}

// 16 bytes of a row.
template <typename Number>
struct alignas(16) Chunk {
  Number values[16 / sizeof(Number)];

  __device__ static Chunk load(const Number* source) { return *reinterpret_cast<const Chunk*>(source); }
};

template <int kDepth, typename Number, int kA, int kB, int kColumns>
__device__ __forceinline__ void multiply_transposed_plainly(
    Accumulator<kColumns, Number>& c, Tile<Number, kA> a, int a_column, Tile<Number, kB> b) {
  constexpr int kChunk = Tile<Number, kA>::kChunk;
#pragma unroll 1
  for (int k = 0; k < kDepth; k += kChunk) {
    Chunk<Number> left[kRowsOfThread];
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      left[i] = Chunk<Number>::load(a.chunk(row_of_thread(i), a_column + k));
    }
#pragma unroll
    for (int j = 0; j < c.kBlocks; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Chunk<Number> right = Chunk<Number>::load(b.chunk(c.column(j) + e, k));
#pragma unroll
        for (int i = 0; i < kRowsOfThread; ++i) {
#pragma unroll
          for (int step = 0; step < kChunk; ++step) {
            c(i, j, e) = fma(left[i].values[step], right.values[step], c(i, j, e));
          }
        }
      }
    }
  }
}

template <int kDepth, typename Number, int kA, int kColumns>
__device__ __forceinline__ void multiply_plainly(
    Accumulator<kColumns, Number>& c, Tile<Number, kA> a, int a_column, Tile<Number, kColumns> b) {
  constexpr int kChunk = Tile<Number, kA>::kChunk;
#pragma unroll 1
  for (int k = 0; k < kDepth; k += kChunk) {
    Chunk<Number> left[kRowsOfThread];
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      left[i] = Chunk<Number>::load(a.chunk(row_of_thread(i), a_column + k));
    }
#pragma unroll
    for (int j = 0; j < c.kBlocks; ++j) {
#pragma unroll
      for (int step = 0; step < kChunk; ++step) {
        const auto right = load_pair(b.at(k + step, c.column(j)));
#pragma unroll
        for (int i = 0; i < kRowsOfThread; ++i) {
          c(i, j, 0) = fma(left[i].values[step], right.x, c(i, j, 0));
          c(i, j, 1) = fma(left[i].values[step], right.y, c(i, j, 1));
        }
      }
    }
  }
}

// c += a[:, a_column : a_column + depth] b^T, with b (kColumns, depth).
template <int kDepth, typename Number, typename Element, int kA, int kB, int kColumns>
__device__ __forceinline__ void multiply_transposed(
    Accumulator<kColumns, Number>& c, Tile<Element, kA> a, int a_column, Tile<Element, kB> b) {
  if constexpr (kOnTensorCores<Element>) {
    multiply_transposed_on_tensor_cores<kDepth>(c, a, a_column, b);
  } else {
    multiply_transposed_plainly<kDepth>(c, a, a_column, b);
  }
}

// c += a[:, a_column : a_column + depth] b, with b (depth, kColumns).
template <int kDepth, typename Number, typename Element, int kA, int kColumns>
__device__ __forceinline__ void multiply(
    Accumulator<kColumns, Number>& c, Tile<Element, kA> a, int a_column, Tile<Element, kColumns> b) {
  if constexpr (kOnTensorCores<Element>) {
    multiply_on_tensor_cores<kDepth>(c, a, a_column, b);
  } else {
    multiply_plainly<kDepth>(c, a, a_column, b);
  }
}

}  // namespace sdpt_ext::cuda
