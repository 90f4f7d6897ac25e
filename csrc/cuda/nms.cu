// Class-wise suppression: a bit per pair of boxes that overlap, then one block that walks down the ranking.
#include <array>

#include "../nms_check.h"
#include "../ops.h"
#include "../tensors.h"
#include "dispatch.h"
#include "launch.h"

namespace sdpt_ext::cuda {
namespace {

using Word = unsigned long long;
constexpr int kWordBits = 64;
// The pairs of this many boxes at a time, so that memory grows with the number of boxes, not with its square.
constexpr int64_t kChunk = 2048;
constexpr int kWalkThreads = 512;

// Inclusive corners: a box from 3 to 5 is 3 pixels wide.
template <typename T>
struct Box {
  T left, top, right, bottom;
};

// Products that the compiler may not fuse with a sum: every device then keeps the same boxes.
__device__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ double product(double a, double b) { return __dmul_rn(a, b); }

template <typename T>
__device__ T area(const Box<T>& box) {
  return product(box.right - box.left + 1, box.bottom - box.top + 1);
}

// As std::min and std::max, NaN included.
template <typename T>
__device__ T smaller(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
__device__ T larger(T a, T b) {
  return a < b ? b : a;
}

template <typename T>
__device__ bool overlaps(const Box<T>& a, const Box<T>& b, T threshold) {
  const T width = larger(smaller(a.right, b.right) - larger(a.left, b.left) + 1, T(0));
  const T height = larger(smaller(a.bottom, b.bottom) - larger(a.top, b.top) + 1, T(0));
  const T shared = product(width, height);
  return shared / (area(a) + area(b) - shared) > threshold;
}

template <typename T>
struct Ranking {
  const T* boxes;         // (count, 4)
  const int64_t* labels;  // (count)
  const int64_t* order;   // box indices by descending score
  int64_t count;

  __device__ int64_t label(int64_t rank) const { return labels[order[rank]]; }
  __device__ Box<T> box(int64_t rank) const {
    const T* corners = boxes + 4 * order[rank];
    return {corners[0], corners[1], corners[2], corners[3]};
  }
};

// A block per (64 later boxes, 64 earlier boxes): rivals[row][word] marks the later boxes that row would suppress.
template <typename T>
__global__ void __launch_bounds__(kWordBits)
    mark_rivals(Ranking<T> ranking, int64_t first, int64_t words, T threshold, Word* rivals) {
  __shared__ Box<T> later_boxes[kWordBits];
  __shared__ int64_t later_labels[kWordBits];
  const int64_t column = int64_t{blockIdx.x} * kWordBits;
  const int64_t row = first + int64_t{blockIdx.y} * kWordBits + threadIdx.x;
  if (column + kWordBits <= row - threadIdx.x) {
    return;
  }
  const int64_t later = column + threadIdx.x;
  if (later < ranking.count) {
    later_boxes[threadIdx.x] = ranking.box(later);
    later_labels[threadIdx.x] = ranking.label(later);
  }
  __syncthreads();
  if (row >= ranking.count) {
    return;
  }
  const Box<T> box = ranking.box(row);
  const int64_t label = ranking.label(row), width = min(int64_t{kWordBits}, ranking.count - column);
  Word marked = 0;
  for (int64_t i = max(int64_t{0}, row + 1 - column); i < width; ++i) {
    if (later_labels[i] == label && overlaps(box, later_boxes[i], threshold)) {
      marked |= Word{1} << i;
    }
  }
  rivals[(row - first) * words + blockIdx.x] = marked;
}

// Which of 64 boxes survive, given those that better ones suppressed already and the rivals among themselves.
__device__ Word survivors(Word suppressed, const Word* rivals, int64_t count) {
  Word kept = 0;
  for (int i = 0; i < count; ++i) {
    if (!(suppressed >> i & 1)) {
      kept |= Word{1} << i;
      suppressed |= rivals[i];
    }
  }
  return kept;
}

// One block. suppressed: (words), a bit per box; kept_count: how many boxes earlier chunks kept.
__global__ void __launch_bounds__(kWalkThreads) walk(const int64_t* order,
                                                     int64_t first,
                                                     int64_t last,
                                                     int64_t words,
                                                     const Word* rivals,
                                                     Word* suppressed,
                                                     int64_t* kept,
                                                     int64_t* kept_count) {
  __shared__ Word diagonal[kWordBits];
  __shared__ Word alive;
  int64_t total = *kept_count;
  for (int64_t row = first; row < last; row += kWordBits) {
    const int64_t word = row / kWordBits, height = min(int64_t{kWordBits}, last - row);
    const Word* rows = rivals + (row - first) * words;
    if (threadIdx.x < height) {
      diagonal[threadIdx.x] = rows[threadIdx.x * words + word];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      alive = survivors(suppressed[word], diagonal, height);
    }
    __syncthreads();
    if (threadIdx.x < height && (alive >> threadIdx.x & 1)) {
      kept[total + __popcll(alive & ((Word{1} << threadIdx.x) - 1))] = order[row + threadIdx.x];
    }
    total += __popcll(alive);
    for (int64_t later = word + 1 + threadIdx.x; later < words; later += kWalkThreads) {
      Word merged = suppressed[later];
      for (Word left = alive; left != 0; left &= left - 1) {
        merged |= rows[(__ffsll(left) - 1) * words + later];
      }
      suppressed[later] = merged;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    *kept_count = total;
  }
}

// Indices by descending score; equal scores keep their order, NaN comes first.
Tensor descending_order(const Tensor& scores) {
  using torch::stable::detail::from, torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(scores), from(std::optional<bool>(true)), from(int64_t{0}), from(true)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  const Tensor values = to<Tensor>(stack[0]);  // takes the ownership that the stack holds
  return to<Tensor>(stack[1]);
}

template <typename T>
void find_kept(const Ranking<T>& ranking, T threshold, Word* rivals, Word* suppressed, int64_t* kept,
               int64_t* kept_count, cudaStream_t stream) {
  const int64_t words = (ranking.count + kWordBits - 1) / kWordBits;
  for (int64_t first = 0; first < ranking.count; first += kChunk) {
    const int64_t last = std::min(first + kChunk, ranking.count);
    const dim3 grid(words, (last - first + kWordBits - 1) / kWordBits);
    mark_rivals<<<grid, kWordBits, 0, stream>>>(ranking, first, words, threshold, rivals);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    walk<<<1, kWalkThreads, 0, stream>>>(
        ranking.order, first, last, words, rivals, suppressed, kept, kept_count);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

int64_t read_back(const int64_t* device_value, cudaStream_t stream) {
  int64_t value = 0;
  STD_CUDA_CHECK(cudaMemcpyAsync(&value, device_value, sizeof(value), cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  return value;
}

}  // namespace

Tensor nms(const Tensor& boxes, const Tensor& scores, const Tensor& labels, double iou_threshold) {
  const int64_t count = check_nms(boxes, scores, labels);
  const int64_t words = (count + kWordBits - 1) / kWordBits;
  const LaunchScope scope(boxes);
  const Tensor corners = torch::stable::contiguous(boxes), classes = torch::stable::contiguous(labels);
  const Tensor order = descending_order(scores), kept = empty(labels, {count}), kept_count = zeros(labels, {1});
  const Tensor rivals = empty(labels, {std::min(count, kChunk), words}), suppressed = zeros(labels, {words});
  dispatch_full(boxes, "nms", [&](auto zero) {
    using T = decltype(zero);
    const Ranking<T> ranking{data<T>(corners), data<int64_t>(classes), data<int64_t>(order), count};
    find_kept(ranking, T(iou_threshold), mutable_data<Word>(rivals), mutable_data<Word>(suppressed),
              mutable_data<int64_t>(kept), mutable_data<int64_t>(kept_count), scope.stream());
  });
  Tensor result = kept;
  return torch::stable::narrow(result, 0, 0, read_back(data<int64_t>(kept_count), scope.stream()));
}

}  // namespace sdpt_ext::cuda
