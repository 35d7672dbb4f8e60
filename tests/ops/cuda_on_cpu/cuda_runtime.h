// As much of CUDA as the kernels use, on threads of the CPU: blocks one after another, the threads of a block at once,
// shared memory as static variables. Compiled with the thread sanitizer, it finds a forgotten __syncthreads.
#pragma once

#include <pthread.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct Index {
  int x;
};
inline thread_local Index blockIdx, threadIdx;
inline Index blockDim, gridDim;

// Not std::barrier, whose threads spin before they sleep, which costs much with so many more threads than cores.
class Barrier {
 public:
  explicit Barrier(int threads) { pthread_barrier_init(&barrier_, nullptr, threads); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};
inline std::unique_ptr<Barrier> every_thread;
inline std::vector<std::unique_ptr<Barrier>> warps;
inline std::array<double, 1024> lanes;  // what each thread gives to a shuffle

struct float4 {
  float x, y, z, w;
};
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaDevAttrMultiProcessorCount = 16;
inline int cudaGetDevice(int* device) { return *device = 0; }
inline int cudaDeviceGetAttribute(int* value, int, int) {
  *value = 3;
  return cudaSuccess;
}
inline int cudaGetLastError() { return cudaSuccess; }
inline void __syncthreads() { every_thread->wait(); }
// For whole warps, as the kernels use it; a double holds every float.
template <typename T>
T __shfl_xor_sync(unsigned, T value, int other) {
  auto& warp = *warps[threadIdx.x / 32];
  lanes[threadIdx.x] = value;
  warp.wait();
  const T found = static_cast<T>(lanes[threadIdx.x ^ other]);
  warp.wait();
  return found;
}
inline int atomicAdd(int* place, int value) { return __atomic_fetch_add(place, value, __ATOMIC_RELAXED); }

inline void emulate(int blocks, int threads, const std::function<void()>& kernel) {
  gridDim.x = blocks;
  blockDim.x = threads;
  every_thread = std::make_unique<Barrier>(threads);
  warps.clear();
  for (int first = 0; first < threads; first += 32) warps.push_back(std::make_unique<Barrier>(32));
  std::vector<std::thread> block;
  for (int number = 0; number < threads; ++number) {
    block.emplace_back([&, number] {
      threadIdx.x = number;
      for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        kernel();
        every_thread->wait();
      }
    });
  }
  for (auto& thread : block) thread.join();
}
