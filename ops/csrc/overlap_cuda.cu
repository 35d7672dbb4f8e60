// The CUDA kernel of overlap masking. Does not include torch, so only nvcc is needed to compile this file.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels.h"
#include "overlap.h"

namespace {

constexpr int kThreads = 128;

struct Seed {
  float x1, y1, x2, y2, area;
};

// A block processes one image at a time and loops over its seeds in tiles: the threads copy the valid seeds of a tile
// to shared memory, compacted, and then each compares its regions with all of them. The shared memory needed does not
// depend on n.
__global__ void mask_overlapping_kernel(const float4* __restrict__ boxes, const bool* __restrict__ seeds,
                                        const bool* __restrict__ valid, int64_t batch, int64_t n, float threshold,
                                        bool* __restrict__ out) {
  __shared__ Seed tile[kThreads];
  __shared__ int count;
  for (int64_t image = blockIdx.x; image < batch; image += gridDim.x) {
    const int64_t first = image * n;
    for (int64_t begin = 0; begin < n; begin += blockDim.x) {
      const int64_t i = begin + threadIdx.x;
      const bool mine = i < n && (!valid || valid[first + i]);
      const float4 box = i < n ? boxes[first + i] : float4{0, 0, 0, 0};
      const float area = box_area(box.x, box.y, box.z, box.w);
      bool hit = mine && seeds[first + i];
      for (int64_t other = 0; other < n; other += blockDim.x) {
        __syncthreads();
        if (threadIdx.x == 0) count = 0;
        __syncthreads();
        const int64_t j = other + threadIdx.x;
        if (j < n && seeds[first + j] && (!valid || valid[first + j])) {
          const float4 s = boxes[first + j];
          tile[atomicAdd(&count, 1)] = {s.x, s.y, s.z, s.w, box_area(s.x, s.y, s.z, s.w)};
        }
        __syncthreads();
        if (mine && !hit) {
          for (int k = 0; k < count && !hit; ++k) {
            const Seed s = tile[k];
            hit = boxes_overlap(s.x1, s.y1, s.x2, s.y2, s.area, box.x, box.y, box.z, box.w, area, threshold);
          }
        }
      }
      if (i < n) out[first + i] = hit;
    }
  }
}

}  // namespace

extern "C" int mask_overlapping_cuda(const float* boxes, const bool* seeds, const bool* valid, int64_t batch,
                                     int64_t n, float threshold, bool* out, void* stream) {
  if (batch == 0 || n == 0) return cudaSuccess;
  const int blocks = static_cast<int>(batch < 65535 ? batch : 65535);
  const int threads = n <= 32 ? 32 : n <= 64 ? 64 : kThreads;
  mask_overlapping_kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(
      reinterpret_cast<const float4*>(boxes), seeds, valid, batch, n, threshold, out);
  return cudaGetLastError();
}
