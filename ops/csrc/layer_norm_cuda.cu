// The CUDA kernels of LayerNorm(dropout(x) + residual). Does not include torch, so that nvcc alone can compile this
// file.
//
// Rows of up to 1024 columns whose size and addresses are multiples of 16 bytes are held in registers, of one warp in
// forward and of up to four in backward, which also keeps the sums for weight and bias there: every array is read or
// written once. Other rows and other combinations of types use the kernels for any width, which read a row from the
// cache in each step.

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "dropout.h"
#include "kernels.h"
#include "number.h"
#include "pack.h"

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kMost = 1024;     // maximum number of columns held in registers
constexpr int kAddThreads = 512;  // threads per block of the kernel that adds the partial sums, which has few blocks

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The sum over a block, returned to all its threads.
template <typename T>
__device__ __forceinline__ T block_sum(T value) {
  __shared__ T sums[kWarps];
  value = warp_sum(value);
  __syncthreads();  // the sums of the previous call have been read
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += sums[warp];
  return sum;
}

// A row in registers: E numbers per lane in packs of W, with the packs of the L lanes next to each other.
template <int E, int W, int L>
struct Place {
  static constexpr int kPacks = E / W;
  int lane;
  int64_t h;
  __device__ __forceinline__ int column(int pack) const { return (pack * L + lane) * W; }
  __device__ __forceinline__ bool inside(int pack) const { return column(pack) < h; }

  template <typename T>
  __device__ __forceinline__ void read(const T* row, Pack<T, W> (&packs)[kPacks]) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      packs[k] = inside(k) ? *reinterpret_cast<const Pack<T, W>*>(row + column(k)) : Pack<T, W>{};
    }
  }
};

// values = dropout(values) in the registers of a lane; returns a bit mask of the kept numbers.
template <int E, int W, int L>
__device__ __forceinline__ uint32_t drop(const Place<E, W, L>& place, uint64_t start, uint32_t threshold, float scale,
                                         float (&values)[E]) {
  uint32_t kept = 0;
#pragma unroll
  for (int k = 0; k < E; k += 4) {
    const uint64_t bits = group_bits(start, (place.column(k / W) + k % W) / 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool keep = lane_bits(bits, i) >= threshold;
      values[k + i] = keep ? values[k + i] * scale : 0.0f;
      kept |= static_cast<uint32_t>(keep) << (k + i);
    }
  }
  return kept;
}

// values = dropout(x) + residual in a lane's registers, zero outside the row.
template <typename X, typename R, int E, int W, int L>
__device__ __forceinline__ uint32_t dropout_add(const LayerNorm& of, const Place<E, W, L>& place, int64_t row,
                                                float scale, uint32_t threshold, float (&values)[E]) {
  Pack<X, W> x[E / W];
  Pack<R, W> residual[E / W];
  place.read(static_cast<const X*>(of.x) + row * of.h, x);
  if (of.residual) place.read(static_cast<const R*>(of.residual) + row * of.h, residual);
#pragma unroll
  for (int k = 0; k < E; ++k) values[k] = widen(x[k / W].values[k % W]);
  uint32_t kept = 0xffffffffu;
  if (threshold) kept = drop(place, row_site(of.keys[row], of.site), threshold, scale, values);
  if (of.residual) {
#pragma unroll
    for (int k = 0; k < E; ++k) values[k] += widen(residual[k / W].values[k % W]);
  }
  return kept;
}

template <typename X, typename R, typename O, int E>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(LayerNorm of, const float* __restrict__ bias, float eps, Rate rate, O* __restrict__ out,
                   float* __restrict__ means, float* __restrict__ rstds) {
  constexpr int W = 16 / sizeof(X);
  const Place<E, W, 32> place{static_cast<int>(threadIdx.x) % 32, of.h};
  const float scale = static_cast<float>(rate.scale);
  const float* weight = static_cast<const float*>(of.weight);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; row < of.n;
       row += static_cast<int64_t>(gridDim.x) * kWarps) {
    float values[E];
    dropout_add<X, R>(of, place, row, scale, rate.threshold, values);
    float sum = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < E; ++k) sum += values[k];
    const float mean = warp_sum(sum) / static_cast<float>(of.h);
#pragma unroll
    for (int k = 0; k < E; ++k) {
      values[k] -= mean;
      squares += place.inside(k / W) ? values[k] * values[k] : 0.0f;
    }
    const float rstd = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(of.h) + eps);
#pragma unroll
    for (int k = 0; k < E / W; ++k) {
      if (!place.inside(k)) continue;
      const int column = place.column(k);
      const auto w = *reinterpret_cast<const Pack<float, W>*>(weight + column);
      const auto b = *reinterpret_cast<const Pack<float, W>*>(bias + column);
      Pack<O, W> result;
#pragma unroll
      for (int i = 0; i < W; ++i) narrow(values[k * W + i] * rstd * w.values[i] + b.values[i], result.values[i]);
      *reinterpret_cast<Pack<O, W>*>(out + row * of.h + column) = result;
    }
    if (place.lane == 0) {
      means[row] = mean;
      rstds[row] = rstd;
    }
  }
}

// Parameters of the backward kernel: warps per row of h, rows per block, and blocks per multiprocessor, whose registers
// allow up to 80 per thread.
HOST_DEVICE constexpr int warps_of(int64_t h) { return h <= 256 ? 1 : h <= 768 ? 3 : 4; }
HOST_DEVICE constexpr int rows_of(int warps) { return warps == 1 ? kWarps : 1; }
HOST_DEVICE constexpr int blocks_of(int warps) { return warps == 3 ? 8 : 6; }
constexpr int kRowsAtLeast = 8;  // rows that share a row of partial sums, because these are also written and read

// A thread keeps the sums of its columns for weight and bias in registers, over all rows of the block, and writes them
// to partial[block] at the end.
template <typename X, typename R, typename O, int Warps>
__global__ void __launch_bounds__(32 * Warps * rows_of(Warps), blocks_of(Warps))
    backward_kernel(LayerNorm of, const O* __restrict__ gradients, const float* __restrict__ means,
                    const float* __restrict__ rstds, Rate rate, X* __restrict__ dx, R* __restrict__ dresidual,
                    float* __restrict__ partial) {
  constexpr int W = 16 / sizeof(X), E = 8, kRows = rows_of(Warps), kLanes = 32 * Warps;
  __shared__ float sums[2 * kLanes * E];     // used if a block has several rows
  __shared__ float levels[2][Warps], slopes[2][Warps];  // used if a row has several warps
  const int part = threadIdx.x / kLanes, warp = threadIdx.x / 32;
  const Place<E, W, kLanes> place{static_cast<int>(threadIdx.x) % kLanes, of.h};
  const float scale = static_cast<float>(rate.scale);
  const float* weight = static_cast<const float*>(of.weight);
  float dweight[E] = {}, dbias[E] = {};
  int turn = 0;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + part; row < of.n;
       row += static_cast<int64_t>(gridDim.x) * kRows) {
    const float mean = means[row], rstd = rstds[row];
    Pack<O, W> packs[E / W];
    place.read(gradients + row * of.h, packs);
    float normal[E], gradient[E];
    const uint32_t kept = dropout_add<X, R>(of, place, row, scale, rate.threshold, normal);
    float level = 0, slope = 0;
#pragma unroll
    for (int k = 0; k < E / W; ++k) {
      const auto w = place.inside(k) ? *reinterpret_cast<const Pack<float, W>*>(weight + place.column(k))
                                     : Pack<float, W>{};
#pragma unroll
      for (int i = 0; i < W; ++i) {
        const int e = k * W + i;
        normal[e] = (normal[e] - mean) * rstd;
        gradient[e] = widen(packs[k].values[i]);  // zero outside the row
        dweight[e] += gradient[e] * normal[e];
        dbias[e] += gradient[e];
        gradient[e] *= w.values[i];
        level += gradient[e];
        slope += gradient[e] * normal[e];
      }
    }
    level = warp_sum(level);
    slope = warp_sum(slope);
    if constexpr (Warps > 1) {  // alternating buffers, because another warp may still read the previous sums
      if (threadIdx.x % 32 == 0) {
        levels[turn][warp] = level;
        slopes[turn][warp] = slope;
      }
      __syncthreads();
      level = slope = 0;
#pragma unroll
      for (int k = 0; k < Warps; ++k) {
        level += levels[turn][k];
        slope += slopes[turn][k];
      }
      turn ^= 1;
    }
    level /= static_cast<float>(of.h);
    slope /= static_cast<float>(of.h);
#pragma unroll
    for (int k = 0; k < E / W; ++k) {
      if (!place.inside(k)) continue;
      Pack<X, W> to_x;
      Pack<R, W> to_residual;
#pragma unroll
      for (int i = 0; i < W; ++i) {
        const int e = k * W + i;
        const float value = rstd * (gradient[e] - level - normal[e] * slope);
        narrow(value, to_residual.values[i]);
        narrow(kept >> e & 1 ? (rate.threshold ? value * scale : value) : 0.0f, to_x.values[i]);
      }
      const int64_t at = row * of.h + place.column(k);
      if (dresidual) *reinterpret_cast<Pack<R, W>*>(dresidual + at) = to_residual;
      *reinterpret_cast<Pack<X, W>*>(dx + at) = to_x;
    }
  }
  for (int other = 0; other < kRows - 1; ++other) {  // added in order; the last row's thread gets the total
    float* sum = sums + place.lane;                  // lanes next to each other: no bank conflict
    if (part == other) {
#pragma unroll
      for (int e = 0; e < E; ++e) {
        sum[2 * e * kLanes] = dweight[e];
        sum[(2 * e + 1) * kLanes] = dbias[e];
      }
    }
    __syncthreads();
    if (part == other + 1) {
#pragma unroll
      for (int e = 0; e < E; ++e) {
        dweight[e] += sum[2 * e * kLanes];
        dbias[e] += sum[(2 * e + 1) * kLanes];
      }
    }
    __syncthreads();
  }
  if (part != kRows - 1) return;
  float* to = partial + blockIdx.x * 2 * of.h;
#pragma unroll
  for (int k = 0; k < E / W; ++k) {
    if (!place.inside(k)) continue;
    Pack<float, W> to_weight, to_bias;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      to_weight.values[i] = dweight[k * W + i];
      to_bias.values[i] = dbias[k * W + i];
    }
    *reinterpret_cast<Pack<float, W>*>(to + place.column(k)) = to_weight;
    *reinterpret_cast<Pack<float, W>*>(to + of.h + place.column(k)) = to_bias;
  }
}

// Any width, any types; T is the compute type. A block processes one row at a time.
template <typename T>
__device__ __forceinline__ T load(const void* from, Number type, int64_t place) {
  if (type == Number::kFloat64) return static_cast<T>(static_cast<const double*>(from)[place]);
  if (type == Number::kFloat16) return widen(static_cast<const Float16*>(from)[place]);
  if (type == Number::kBFloat16) return widen(static_cast<const BFloat16*>(from)[place]);
  return static_cast<const float*>(from)[place];
}
template <typename T>
__device__ __forceinline__ void store(T value, void* to, Number type, int64_t place) {
  if (type == Number::kFloat64) static_cast<double*>(to)[place] = value;
  if (type == Number::kFloat16) narrow(static_cast<float>(value), static_cast<Float16*>(to)[place]);
  if (type == Number::kBFloat16) narrow(static_cast<float>(value), static_cast<BFloat16*>(to)[place]);
  if (type == Number::kFloat32) static_cast<float*>(to)[place] = static_cast<float>(value);
}

__device__ __forceinline__ bool dropped(uint64_t start, int64_t column, uint32_t threshold) {
  return threshold && lane_bits(group_bits(start, column / 4), static_cast<int>(column & 3)) < threshold;
}

// dropout(x) + residual of one column.
template <typename T>
__device__ __forceinline__ T sum_at(const LayerNorm& of, const Rate& rate, uint64_t start, int64_t row,
                                    int64_t column) {
  const int64_t place = row * of.h + column;
  T value = load<T>(of.x, of.x_type, place);
  if (rate.threshold) value = dropped(start, column, rate.threshold) ? T(0) : value * static_cast<T>(rate.scale);
  return of.residual ? value + load<T>(of.residual, of.residual_type, place) : value;
}
__device__ __forceinline__ uint64_t start_of(const LayerNorm& of, const Rate& rate, int64_t row) {
  return rate.threshold ? row_site(of.keys[row], of.site) : 0;
}

template <typename T>
__global__ void forward_any_kernel(LayerNorm of, const T* __restrict__ bias, T eps, Rate rate, void* __restrict__ out,
                                   Number out_type, T* __restrict__ means, T* __restrict__ rstds) {
  const T* weight = static_cast<const T*>(of.weight);
  for (int64_t row = blockIdx.x; row < of.n; row += gridDim.x) {
    const uint64_t start = start_of(of, rate, row);
    T sum = 0, squares = 0;
    for (int64_t c = threadIdx.x; c < of.h; c += kThreads) sum += sum_at<T>(of, rate, start, row, c);
    const T mean = block_sum(sum) / static_cast<T>(of.h);
    for (int64_t c = threadIdx.x; c < of.h; c += kThreads) {
      const T centred = sum_at<T>(of, rate, start, row, c) - mean;
      squares += centred * centred;
    }
    const T rstd = T(1) / sqrt(block_sum(squares) / static_cast<T>(of.h) + eps);
    for (int64_t c = threadIdx.x; c < of.h; c += kThreads) {
      const T normal = (sum_at<T>(of, rate, start, row, c) - mean) * rstd;
      store<T>(normal * weight[c] + bias[c], out, out_type, row * of.h + c);
    }
    if (threadIdx.x == 0) {
      means[row] = mean;
      rstds[row] = rstd;
    }
  }
}

template <typename T>
__global__ void backward_any_kernel(LayerNorm of, const void* __restrict__ gradients, Number gradient_type,
                                    const T* __restrict__ means, const T* __restrict__ rstds, Rate rate,
                                    void* __restrict__ dx, void* __restrict__ dresidual) {
  const T* weight = static_cast<const T*>(of.weight);
  for (int64_t row = blockIdx.x; row < of.n; row += gridDim.x) {
    const uint64_t start = start_of(of, rate, row);
    const T mean = means[row], rstd = rstds[row];
    T level = 0, slope = 0;
    for (int64_t c = threadIdx.x; c < of.h; c += kThreads) {
      const T gradient = load<T>(gradients, gradient_type, row * of.h + c) * weight[c];
      level += gradient;
      slope += gradient * ((sum_at<T>(of, rate, start, row, c) - mean) * rstd);
    }
    level = block_sum(level) / static_cast<T>(of.h);
    slope = block_sum(slope) / static_cast<T>(of.h);
    for (int64_t c = threadIdx.x; c < of.h; c += kThreads) {
      const int64_t place = row * of.h + c;
      const T normal = (sum_at<T>(of, rate, start, row, c) - mean) * rstd;
      const T gradient = load<T>(gradients, gradient_type, place) * weight[c];
      T value = rstd * (gradient - level - normal * slope);
      if (dresidual) store<T>(value, dresidual, of.residual_type, place);
      if (rate.threshold) value = dropped(start, c, rate.threshold) ? T(0) : value * static_cast<T>(rate.scale);
      store<T>(value, dx, of.x_type, place);
    }
  }
}

// A thread processes one column of the rows block / tiles, block / tiles + partials, ...
template <typename T>
__global__ void weights_any_kernel(LayerNorm of, const void* __restrict__ gradients, Number gradient_type,
                                   const T* __restrict__ means, const T* __restrict__ rstds, Rate rate,
                                   int64_t partials, int64_t tiles, T* __restrict__ partial) {
  const int64_t part = blockIdx.x / tiles, column = blockIdx.x % tiles * kThreads + threadIdx.x;
  if (column >= of.h) return;
  T dweight = 0, dbias = 0;
  for (int64_t row = part; row < of.n; row += partials) {
    const T gradient = load<T>(gradients, gradient_type, row * of.h + column);
    const T value = sum_at<T>(of, rate, start_of(of, rate, row), row, column);
    dweight += gradient * ((value - means[row]) * rstds[row]);
    dbias += gradient;
  }
  partial[part * 2 * of.h + column] = dweight;
  partial[(part * 2 + 1) * of.h + column] = dbias;
}

// The column sums of partial (partials, 2, h): 32 columns per block, whose warps process the rows in turn.
template <typename T>
__global__ void add_partials_kernel(const T* __restrict__ partial, int64_t partials, int64_t h, T* __restrict__ dweight,
                                    T* __restrict__ dbias) {
  constexpr int kAddWarps = kAddThreads / 32;
  __shared__ T sums[kAddThreads];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x % 32;
  T sum = 0;
  if (column < 2 * h) {
#pragma unroll 8
    for (int64_t part = threadIdx.x / 32; part < partials; part += kAddWarps) sum += partial[part * 2 * h + column];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < 32 && column < 2 * h) {
    for (int warp = 1; warp < kAddWarps; ++warp) sum += sums[warp * 32 + threadIdx.x];
    (column < h ? dweight[column] : dbias[column - h]) = sum;
  }
}

int blocks_up_to(int64_t wanted) { return static_cast<int>(wanted < (1 << 20) ? wanted : (1 << 20)); }

struct Forward {
  LayerNorm of;
  const void* bias;
  double eps;
  Rate rate;
  void* out;
  int out_type;
  void *mean, *rstd;
  cudaStream_t stream;
};
struct Backward {
  LayerNorm of;
  const void* gradient;
  int gradient_type;
  const void *mean, *rstd;
  Rate rate;
  void *dx, *dresidual, *partial;
  int64_t partials;
  cudaStream_t stream;
};

template <typename X, typename R, typename O, int E>
void start(const Forward& call) {
  const int blocks = blocks_up_to((call.of.n + kWarps - 1) / kWarps);
  const float* bias = static_cast<const float*>(call.bias);
  float *mean = static_cast<float*>(call.mean), *rstd = static_cast<float*>(call.rstd);
  O* out = static_cast<O*>(call.out);
  const float eps = static_cast<float>(call.eps);
  forward_kernel<X, R, O, E><<<blocks, kThreads, 0, call.stream>>>(call.of, bias, eps, call.rate, out, mean, rstd);
}
template <typename X, typename R, typename O, int Warps>
void start(const Backward& call) {
  const int blocks = static_cast<int>(call.partials);
  constexpr int kRowThreads = 32 * Warps * rows_of(Warps);
  const O* gradient = static_cast<const O*>(call.gradient);
  const float *mean = static_cast<const float*>(call.mean), *rstd = static_cast<const float*>(call.rstd);
  X* dx = static_cast<X*>(call.dx);
  R* dresidual = static_cast<R*>(call.dresidual);
  float* partial = static_cast<float*>(call.partial);
  backward_kernel<X, R, O, Warps><<<blocks, kRowThreads, 0, call.stream>>>(call.of, gradient, mean, rstd, call.rate, dx,
                                                                           dresidual, partial);
}

template <typename T>
void start_any(const Forward& call) {
  const int blocks = blocks_up_to(call.of.n);
  const T* bias = static_cast<const T*>(call.bias);
  T *mean = static_cast<T*>(call.mean), *rstd = static_cast<T*>(call.rstd);
  const T eps = static_cast<T>(call.eps);
  const Number out_type = static_cast<Number>(call.out_type);
  forward_any_kernel<T><<<blocks, kThreads, 0, call.stream>>>(call.of, bias, eps, call.rate, call.out, out_type, mean,
                                                              rstd);
}
template <typename T>
void start_any(const Backward& call) {
  const int blocks = blocks_up_to(call.of.n);
  const T *mean = static_cast<const T*>(call.mean), *rstd = static_cast<const T*>(call.rstd);
  const Number type = static_cast<Number>(call.gradient_type);
  if (blocks > 0) {
    backward_any_kernel<T><<<blocks, kThreads, 0, call.stream>>>(call.of, call.gradient, type, mean, rstd, call.rate,
                                                                 call.dx, call.dresidual);
  }
  const int64_t tiles = (call.of.h + kThreads - 1) / kThreads;
  const int columns = static_cast<int>(call.partials * tiles);
  T* partial = static_cast<T*>(call.partial);
  weights_any_kernel<T><<<columns, kThreads, 0, call.stream>>>(call.of, call.gradient, type, mean, rstd, call.rate,
                                                               call.partials, tiles, partial);
}

// Only the sizes needed for the widths of the model, because each is a kernel to compile: numbers per lane in forward,
// warps per row in backward.
template <typename X, typename R, typename O>
void start_wide(const Forward& call) {
  const int64_t h = call.of.h;
  h <= 256 ? start<X, R, O, 8>(call) : h <= 768 ? start<X, R, O, 24>(call) : start<X, R, O, 32>(call);
}
template <typename X, typename R, typename O>
void start_wide(const Backward& call) {
  const int warps = warps_of(call.of.h);
  warps == 1 ? start<X, R, O, 1>(call) : warps == 3 ? start<X, R, O, 3>(call) : start<X, R, O, 4>(call);
}

// Indexed by the types of x, residual and output; null: use the kernels for any width.
template <typename Call>
struct Wide {
  using Function = void (*)(const Call&);
  static constexpr Function functions[3][3][3] = {
      {{start_wide<float, float, float>, start_wide<float, float, Float16>,
        start_wide<float, float, BFloat16>},
       {},
       {}},
      {{start_wide<Float16, float, float>, start_wide<Float16, float, Float16>, nullptr},
       {start_wide<Float16, Float16, float>, start_wide<Float16, Float16, Float16>, nullptr},
       {}},
      {{start_wide<BFloat16, float, float>, nullptr, start_wide<BFloat16, float, BFloat16>},
       {},
       {start_wide<BFloat16, BFloat16, float>, nullptr, start_wide<BFloat16, BFloat16, BFloat16>}}};
};

// The kernel for these widths, types and addresses (null ones are aligned).
template <typename Call>
void start_best(const Call& call, int type, bool all_aligned) {
  const int x = static_cast<int>(call.of.x_type), residual = static_cast<int>(call.of.residual_type);
  if (call.of.x_type == Number::kFloat64) return start_any<double>(call);
  const int wide = call.of.x_type == Number::kFloat32 ? 4 : 8;
  const auto function = Wide<Call>::functions[x][residual][type];
  all_aligned = all_aligned && aligned(call.of.x) && aligned(call.of.residual) && aligned(call.of.weight);
  if (function && all_aligned && call.of.h % wide == 0 && call.of.h <= kMost) return function(call);
  start_any<float>(call);
}

}  // namespace

extern "C" int layer_norm_cuda(const LayerNorm* of, const void* bias, double eps, void* out, int out_type, void* mean,
                               void* rstd, void* stream) {
  if (of->n == 0 || of->h == 0) return cudaSuccess;
  const Forward call{*of, bias, eps, rate_of(of->p, 16), out, out_type, mean, rstd, static_cast<cudaStream_t>(stream)};
  start_best(call, out_type, aligned(bias) && aligned(out));
  return cudaGetLastError();
}

// Rows of partial sums: at most the number of blocks that run concurrently on this GPU.
extern "C" int64_t layer_norm_partials_cuda(int64_t n, int64_t h) {
  int device = 0, processors = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  const int warps = warps_of(h);
  const int64_t most = static_cast<int64_t>(processors) * blocks_of(warps), rows = kRowsAtLeast * rows_of(warps);
  const int64_t wanted = (n + rows - 1) / rows;
  return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

extern "C" int layer_norm_backward_cuda(const LayerNorm* of, const void* gradient, int gradient_type, const void* mean,
                                        const void* rstd, void* dx, void* dresidual, void* partial, int64_t partials,
                                        void* dweight, void* dbias, void* stream_pointer) {
  if (of->h == 0) return cudaSuccess;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  const Backward call{*of,       gradient,  gradient_type, mean,     rstd,  rate_of(of->p, 16),
                      dx,        dresidual, partial,       partials, stream};
  start_best(call, gradient_type, aligned(gradient) && aligned(dx) && aligned(dresidual));
  const int blocks = static_cast<int>((2 * of->h + 31) / 32);
  if (of->x_type == Number::kFloat64) {
    const auto sums = static_cast<const double*>(partial);
    add_partials_kernel<double><<<blocks, kAddThreads, 0, stream>>>(sums, partials, of->h, static_cast<double*>(dweight),
                                                                 static_cast<double*>(dbias));
  } else {
    const auto sums = static_cast<const float*>(partial);
    add_partials_kernel<float><<<blocks, kAddThreads, 0, stream>>>(sums, partials, of->h, static_cast<float*>(dweight),
                                                                static_cast<float*>(dbias));
  }
  return cudaGetLastError();
}
