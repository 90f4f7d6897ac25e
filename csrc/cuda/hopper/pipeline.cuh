// A ring of tiles in shared memory that one warp fills with asynchronous copies and two warpgroups empty.
#pragma once

#include "warpgroup.cuh"

// Kernels that other architectures can't hold compile to nothing there, for blocks of one warp: by this
// is_compiled() knows them.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SDPT_EXT_HOPPER
#define SDPT_EXT_HOPPER_BOUNDS __launch_bounds__(hopper::kThreads, 1)
#else
#define SDPT_EXT_HOPPER_BOUNDS __launch_bounds__(32)
#endif

namespace sdpt_ext::cuda::hopper {

constexpr int kConsumers = 2;  // warpgroups, after that of the producer
constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
constexpr int kRows = kConsumers * kGroupRows;
// Of a thread: together they fit into a multiprocessor's 65,536.
constexpr uint32_t kProducerRegisters = 24, kConsumerRegisters = 240;

__device__ __forceinline__ void wait_for_phase(const uint64_t& barrier, uint32_t parity) {
  const uint32_t address = ptx::shared_address(&barrier);
  while (!ptx::mbarrier_try_wait(address, parity)) {
  }
}

__device__ __forceinline__ void arrive(uint64_t& barrier) { ptx::mbarrier_arrive(ptx::shared_address(&barrier)); }

// Tiles of kTileRows rows, each with kTerms numbers per row beside it.
template <typename Element, int kTileRows, int kStages_>
struct Ring {
  static constexpr int kStages = kStages_;
  static constexpr uint32_t kBytes = kTileRows * kWidth * sizeof(Element);

  alignas(1024) Element tiles[kStages][kTileRows * kWidth];
  float bias[kStages][kTileRows];         // added to the scores of the row
  uint32_t dropout_keys[kStages][kTileRows];
  uint64_t full[kStages], empty[kStages];

  // By one thread.
  __device__ void init() {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(ptx::shared_address(&full[stage]), 32);
      ptx::mbarrier_init(ptx::shared_address(&empty[stage]), kConsumers * kGroupThreads / 32);
    }
  }
};

// Where the producer or a consumer stands in the ring.
template <typename Ring>
struct Cursor {
  Ring& ring;
  int stage = 0;
  uint32_t parity = 0;

  __device__ explicit Cursor(Ring& memory) : ring(memory) {}

  __device__ void advance() {
    if (++stage == Ring::kStages) {
      stage = 0, parity ^= 1;
    }
  }
  __device__ uint32_t tile() const { return ptx::shared_address(ring.tiles[stage]); }

  // For all lanes of the producing warp. terms(row, bias, dropout key) sets what stands beside the tile;
  // then boxes of the map's matrix come from `row` on.
  template <typename Terms>
  __device__ __forceinline__ void fill(const CUtensorMap* map, int row, int matrix, int rows, const Terms& terms) {
    wait_for_phase(ring.empty[stage], parity ^ 1);
#pragma unroll 1
    for (int i = lane(); i < rows; i += 32) {
      terms(i, ring.bias[stage][i], ring.dropout_keys[stage][i]);
    }
    const uint32_t full = ptx::shared_address(&ring.full[stage]);
    if (lane() == 0) {
      ptx::mbarrier_arrive_expect(full, Ring::kBytes);
      for (int panel = 0; panel < kPanels; ++panel) {
        ptx::load_box(tile() + panel * (Ring::kBytes / kPanels), map, panel * kPanelColumns, row, matrix, full);
      }
    } else {
      ptx::mbarrier_arrive(full);
    }
    advance();
  }

  // For consumers: until the tile is there; and when a warp needs it no more.
  __device__ __forceinline__ void wait() const { wait_for_phase(ring.full[stage], parity); }
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane() == 0) {
      arrive(ring.empty[stage]);
    }
    advance();
  }
};

// The first warpgroup produces, the others consume; most registers go to those.
template <class Kernel>
__device__ __forceinline__ void run_warpgroups(Kernel kernel) {
  kernel.init();
  const int group = threadIdx.x / kGroupThreads;
  if (group == 0) {
    ptx::give_registers<kProducerRegisters>();
    if (threadIdx.x < 32) {
      kernel.produce();
    }
  } else {
    ptx::take_registers<kConsumerRegisters>();
    kernel.consume(group - 1);
  }
}

}  // namespace sdpt_ext::cuda::hopper
