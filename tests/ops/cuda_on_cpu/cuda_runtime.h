// As much of CUDA as the kernels use, on threads of the CPU: blocks one after another, the threads of a block at once,
// shared memory as static variables. Compiled with the thread sanitizer, it finds a forgotten __syncthreads.
#pragma once

#include <barrier>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __shared__ static

struct Index {
  int x;
};
inline thread_local Index blockIdx, threadIdx;
inline Index blockDim, gridDim;
inline std::unique_ptr<std::barrier<>> every_thread;

struct float4 {
  float x, y, z, w;
};
using cudaStream_t = void*;
constexpr int cudaSuccess = 0;
inline int cudaGetLastError() { return cudaSuccess; }
inline void __syncthreads() { every_thread->arrive_and_wait(); }
inline int atomicAdd(int* place, int value) { return __atomic_fetch_add(place, value, __ATOMIC_RELAXED); }

inline void emulate(int blocks, int threads, const std::function<void()>& kernel) {
  gridDim.x = blocks;
  blockDim.x = threads;
  every_thread = std::make_unique<std::barrier<>>(threads);
  std::vector<std::thread> block;
  for (int number = 0; number < threads; ++number) {
    block.emplace_back([&, number] {
      threadIdx.x = number;
      for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        kernel();
        every_thread->arrive_and_wait();
      }
    });
  }
  for (auto& thread : block) thread.join();
}
