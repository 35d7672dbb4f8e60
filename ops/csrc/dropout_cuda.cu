// The CUDA kernels of dropout and attention dropout. Does not include torch, so that nvcc alone can compile this file.

#include <cuda_runtime.h>

#include <cstdint>

#include "dropout.h"
#include "kernels.h"
#include "number.h"
#include "pack.h"

namespace {

constexpr int kThreads = 128;

// Lanes per row: a power of two, so that rows shorter than a warp do not leave most of it idle.
int lanes_of(int64_t packs) {
  int lanes = 1;
  while (lanes < 32 && lanes < packs) lanes *= 2;
  return lanes;
}

// 64-bit division takes about a hundred instructions on a GPU; 32-bit division does not.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  return ((a | b) >> 31) == 0 ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
}

template <typename T, int W>
__global__ void dropout_kernel(const T* __restrict__ x, const int64_t* __restrict__ keys, int64_t site, Rate rate,
                               int64_t n, int64_t h, int lanes, T* __restrict__ out) {
  using Value = decltype(widen(T{}));
  const Value scale = static_cast<Value>(rate.scale);
  const int lane = threadIdx.x % lanes, rows = kThreads / lanes;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * rows + threadIdx.x / lanes; row < n;
       row += static_cast<int64_t>(gridDim.x) * rows) {
    const uint64_t start = row_site(keys[row], site);
#pragma unroll 4
    for (int64_t column = lane * W; column < h; column += lanes * W) {
      const auto in = *reinterpret_cast<const Pack<T, W>*>(x + row * h + column);
      Pack<T, W> result;
      uint64_t bits = 0;
#pragma unroll
      for (int k = 0; k < W; ++k) {
        if (k % 4 == 0) bits = group_bits(start, (column + k) / 4);
        const int place = W == 1 ? static_cast<int>(column & 3) : W == 2 ? static_cast<int>(column & 2) + k : k;
        const bool dropped = lane_bits(bits, place) < rate.threshold;
        narrow(dropped ? Value(0) : widen(in.values[k]) * scale, result.values[k]);
      }
      *reinterpret_cast<Pack<T, W>*>(out + row * h + column) = result;
    }
  }
}

template <typename T, int W>
__global__ void attention_dropout_kernel(const T* __restrict__ probs, const int64_t* __restrict__ query_keys,
                                         const int64_t* __restrict__ key_keys, int64_t site, Rate rate, int64_t total,
                                         int64_t heads, int64_t queries, int64_t keys, int lanes,
                                         T* __restrict__ out) {
  using Value = decltype(widen(T{}));
  const Value scale = static_cast<Value>(rate.scale);
  const int lane = threadIdx.x % lanes, rows = kThreads / lanes;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * rows + threadIdx.x / lanes; row < total;
       row += static_cast<int64_t>(gridDim.x) * rows) {
    const int64_t matrix = divide(row, queries), query = row - matrix * queries;
    const int64_t image = divide(matrix, heads), head = matrix - image * heads;
    const uint64_t start = row_site(query_keys[image * queries + query], site * heads + head);
    const int64_t* key = key_keys + image * keys;
#pragma unroll 4
    for (int64_t column = lane * W; column < keys; column += lanes * W) {
      const auto in = *reinterpret_cast<const Pack<T, W>*>(probs + row * keys + column);
      Pack<T, W> result;
#pragma unroll
      for (int k = 0; k < W; ++k) {
        const bool dropped = pair_bits(start, key[column + k]) < rate.threshold;
        narrow(dropped ? Value(0) : widen(in.values[k]) * scale, result.values[k]);
      }
      *reinterpret_cast<Pack<T, W>*>(out + row * keys + column) = result;
    }
  }
}

// Number of blocks for some rows and lanes; if there are more rows than fit in a grid, blocks loop over rows.
int blocks_for(int64_t rows, int lanes) {
  const int64_t a_block = kThreads / lanes, wanted = (rows + a_block - 1) / a_block;
  return static_cast<int>(wanted < (1 << 20) ? wanted : (1 << 20));
}

template <typename T, int W>
void start(const T* x, const int64_t* keys, int64_t site, Rate rate, int64_t n, int64_t h, T* out,
           cudaStream_t stream) {
  const int lanes = lanes_of(h / W);
  const int blocks = blocks_for(n, lanes);
  dropout_kernel<T, W><<<blocks, kThreads, 0, stream>>>(x, keys, site, rate, n, h, lanes, out);
}

template <typename T>
void start_dropout(const void* x, const int64_t* keys, int64_t site, Rate rate, int64_t n, int64_t h, void* out,
                   cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  const auto function = h % kWide == 0 && aligned(x) && aligned(out) ? start<T, kWide> : start<T, 1>;
  function(static_cast<const T*>(x), keys, site, rate, n, h, static_cast<T*>(out), stream);
}

template <typename T, int W>
void attend(const T* probs, const int64_t* query_keys, const int64_t* key_keys, int64_t site, Rate rate, int64_t total,
            int64_t heads, int64_t queries, int64_t keys, T* out, cudaStream_t stream) {
  const int lanes = lanes_of(keys / W);
  const int blocks = blocks_for(total, lanes);
  attention_dropout_kernel<T, W><<<blocks, kThreads, 0, stream>>>(probs, query_keys, key_keys, site, rate, total,
                                                                  heads, queries, keys, lanes, out);
}

template <typename T>
void start_attention(const void* probs, const int64_t* query_keys, const int64_t* key_keys, int64_t site, Rate rate,
                     int64_t total, int64_t heads, int64_t queries, int64_t keys, void* out, cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  const auto function = keys % kWide == 0 && aligned(probs) && aligned(out) ? attend<T, kWide> : attend<T, 1>;
  function(static_cast<const T*>(probs), query_keys, key_keys, site, rate, total, heads, queries, keys,
           static_cast<T*>(out), stream);
}

}  // namespace

extern "C" int dropout_cuda(const void* x, int number, const int64_t* keys, int64_t site, double p, int64_t n,
                            int64_t h, void* out, void* stream) {
  if (n == 0 || h == 0) return cudaSuccess;
  using Function = void (*)(const void*, const int64_t*, int64_t, Rate, int64_t, int64_t, void*, cudaStream_t);
  static constexpr Function functions[4] = {start_dropout<float>, start_dropout<Float16>, start_dropout<BFloat16>,
                                            start_dropout<double>};
  functions[number](x, keys, site, rate_of(p, 16), n, h, out, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

extern "C" int attention_dropout_cuda(const void* probs, int number, const int64_t* query_keys,
                                      const int64_t* key_keys, int64_t site, double p, int64_t batch, int64_t heads,
                                      int64_t queries, int64_t keys, void* out, void* stream) {
  const int64_t total = batch * heads * queries;
  if (total == 0 || keys == 0) return cudaSuccess;
  using Function = void (*)(const void*, const int64_t*, const int64_t*, int64_t, Rate, int64_t, int64_t, int64_t,
                            int64_t, void*, cudaStream_t);
  static constexpr Function functions[4] = {start_attention<float>, start_attention<Float16>,
                                            start_attention<BFloat16>, start_attention<double>};
  functions[number](probs, query_keys, key_keys, site, rate_of(p, 24), total, heads, queries, keys, out,
                    static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}
