// The CUDA kernel of region masking. Does not include torch, so only nvcc is needed to compile this file.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels.h"
#include "number.h"
#include "pack.h"

namespace {

constexpr int kThreads = 128;

// A thread processes W contiguous columns of one image and loops over its regions: it reads every visible one once,
// writes every row once, and adds its columns in the same order as the CPU.
template <typename In, typename Out, int W>
__global__ void mask_regions_kernel(const In* __restrict__ features, const bool* __restrict__ visible, int64_t batch,
                                    int64_t n, int64_t size, Out* __restrict__ out) {
  const int64_t columns = size / W;
  const int64_t total = batch * columns;
  for (int64_t place = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; place < total;
       place += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t image = place / columns, column = place % columns * W;
    const In* from = features + image * n * size + column;
    Out* to = out + image * (n + 1) * size + column;
    float sum[W] = {};
    int64_t count = 0;
#pragma unroll 4
    for (int64_t i = 0; i < n; ++i) {
      Pack<Out, W> row = {};
      if (visible[image * n + i]) {
        const auto pack = *reinterpret_cast<const Pack<In, W>*>(from + i * size);
        for (int k = 0; k < W; ++k) {
          const float value = widen(pack.values[k]);
          sum[k] += value;
          narrow(value, row.values[k]);
        }
        ++count;
      }
      *reinterpret_cast<Pack<Out, W>*>(to + (i + 1) * size) = row;
    }
    Pack<Out, W> mean;
    for (int k = 0; k < W; ++k) narrow(sum[k] / static_cast<float>(count > 0 ? count : 1), mean.values[k]);
    *reinterpret_cast<Pack<Out, W>*>(to) = mean;
  }
}

template <typename In, typename Out>
void start(const void* features, const bool* visible, int64_t batch, int64_t n, int64_t size, void* out,
           cudaStream_t stream) {
  constexpr int kWide = 16 / (sizeof(In) > sizeof(Out) ? sizeof(In) : sizeof(Out));
  const In* from = static_cast<const In*>(features);
  Out* to = static_cast<Out*>(out);
  const bool wide = size % kWide == 0 && aligned(from) && aligned(to);
  const int64_t work = batch * (wide ? size / kWide : size);
  const int64_t wanted = (work + kThreads - 1) / kThreads;
  const int blocks = static_cast<int>(wanted < (1 << 20) ? wanted : (1 << 20));
  if (wide) {
    mask_regions_kernel<In, Out, kWide><<<blocks, kThreads, 0, stream>>>(from, visible, batch, n, size, to);
  } else {
    mask_regions_kernel<In, Out, 1><<<blocks, kThreads, 0, stream>>>(from, visible, batch, n, size, to);
  }
}

}  // namespace

extern "C" int mask_regions_cuda(const void* features, int in, const bool* visible, int64_t batch, int64_t n,
                                 int64_t size, void* out, int to, void* stream) {
  if (batch == 0 || size == 0) return cudaSuccess;
  using Function = void (*)(const void*, const bool*, int64_t, int64_t, int64_t, void*, cudaStream_t);
  static constexpr Function functions[3][3] = {
      {start<float, float>, start<float, Float16>, start<float, BFloat16>},
      {start<Float16, float>, start<Float16, Float16>, start<Float16, BFloat16>},
      {start<BFloat16, float>, start<BFloat16, Float16>, start<BFloat16, BFloat16>}};
  functions[in][to](features, visible, batch, n, size, out, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}
