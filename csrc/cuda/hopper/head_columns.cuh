// Scores whose columns are the heads of a token, then those of the next, and so on.
//
// Of several heads a thread, which holds two neighbours of every eight columns, sees the same two throughout.
#pragma once

#include "warpgroup.cuh"

namespace sdpt_ext::cuda::hopper {

// kHeads: 1, 2, 4 or 8. Every thread follows kSoftmaxes softmaxes, one per row and head that it sees.
template <int kHeads>
struct HeadColumns {
  static constexpr int kHeadsOfThread = kHeads == 1 ? 1 : 2;
  static constexpr int kSoftmaxes = kRowsPerThread * kHeadsOfThread;
  static constexpr int kSpeakers = kHeads / kHeadsOfThread;  // threads of a row that see different heads

  __device__ static constexpr int softmax_of(int i, int column) {
    return i * kHeadsOfThread + column % kHeadsOfThread;
  }
  __device__ static int speaker() { return lane() % 4 % kSpeakers; }
  // Of the threads that see the same heads of a row, one speaks for them.
  __device__ static bool speaks() { return lane() % 4 < kSpeakers; }
  // The k-th of the thread's heads, among those of the columns.
  __device__ static int head_of(int k) { return speaker() * kHeadsOfThread + k; }

  // Calls body(softmax, row of the thread's two, which of its heads).
  template <typename Body>
  __device__ __forceinline__ static void for_each_softmax(const Body& body) {
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
#pragma unroll
      for (int k = 0; k < kHeadsOfThread; ++k) {
        body(softmax_of(i, k), i, k);
      }
    }
  }

  // Combines what the threads of each softmax hold.
  template <typename Combine>
  __device__ __forceinline__ static void reduce(float (&value)[kSoftmaxes], const Combine& combine) {
    reduce_rows<kSpeakers>(value, combine);
  }
};

}  // namespace sdpt_ext::cuda::hopper
