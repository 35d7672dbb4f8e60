// The CPU loops of LayerNorm(dropout(x) + residual), without torch. A row is converted to float32 or float64 in a
// buffer that fits the L1 cache, processed there, and rounded once.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "dropout.h"
#include "kernels.h"
#include "number.h"
#include "processors.h"
#include "random_row.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // on the ABI of passing vectors to functions, all of which are inlined here

namespace {

constexpr int kSums = 16;  // partial sums of a row: enough for the widest vectors, and equal on all processors

template <typename From, typename T>
inline void widen_row(const void* from, int64_t row, int64_t h, T* __restrict__ to) {
  const From* __restrict__ numbers = static_cast<const From*>(from) + row * h;
  for (int64_t i = 0; i < h; ++i) to[i] = widen(numbers[i]);
}
template <typename To, typename T>
inline void narrow_row(const T* __restrict__ from, int64_t row, int64_t h, void* to) {
  To* __restrict__ numbers = static_cast<To*>(to) + row * h;
  for (int64_t i = 0; i < h; ++i) narrow(from[i], numbers[i]);
}

inline void read_row(const void* from, Number type, int64_t row, int64_t h, float* to) {
  if (type == Number::kFloat32) widen_row<float>(from, row, h, to);
  if (type == Number::kFloat16) widen_row<Float16>(from, row, h, to);
  if (type == Number::kBFloat16) widen_row<BFloat16>(from, row, h, to);
}
inline void write_row(const float* from, Number type, int64_t row, int64_t h, void* to) {
  if (type == Number::kFloat32) narrow_row<float>(from, row, h, to);
  if (type == Number::kFloat16) narrow_row<Float16>(from, row, h, to);
  if (type == Number::kBFloat16) narrow_row<BFloat16>(from, row, h, to);
}
// With float64, everything is.
inline void read_row(const void* from, Number, int64_t row, int64_t h, double* to) {
  widen_row<double>(from, row, h, to);
}
inline void write_row(const double* from, Number, int64_t row, int64_t h, void* to) {
  narrow_row<double>(from, row, h, to);
}

// A vector of kSums numbers, in as many registers as the processor needs. Compilers do not vectorise a loop over an
// array of partial sums.
template <typename T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(kSums * sizeof(T)), aligned(alignof(T)), may_alias));
};

// The sum of term(values...) over the columns of one or two rows, in the same order on every processor.
template <typename T, typename Term, typename... Rows>
inline T sum_of(int64_t h, Term term, const Rows*... rows) {
  using Vector = typename Lanes<T>::Vector;
  Vector vector = {};
  int64_t i = 0;
  for (; i + kSums <= h; i += kSums) vector += term(*reinterpret_cast<const Vector*>(rows + i)...);
  T sums[kSums];
  memcpy(sums, &vector, sizeof sums);
  for (int k = 0; i + k < h; ++k) sums[k] += term(rows[i + k]...);
  for (int step = kSums / 2; step > 0; step /= 2) {
    for (int k = 0; k < step; ++k) sums[k] += sums[k + step];
  }
  return sums[0];
}

template <typename T>
struct Scratch {
  explicit Scratch(const LayerNorm& of)
      : rate(rate_of(of.p, 16)), scale(static_cast<T>(rate.scale)), lanes(rate.threshold ? lanes_for(of.h) : 0),
        sum(of.h), other(of.h), third(of.h) {}
  Rate rate;
  T scale;
  std::vector<uint16_t> lanes;
  std::vector<T> sum, other, third;  // rows of h numbers
};

// values[c] = dropped ? 0 : values[c] * scale, with the lanes written by random_lanes.
template <typename T>
inline void drop(const uint16_t* __restrict__ lanes, uint32_t threshold, T scale, int64_t h, T* __restrict__ values) {
  for (int64_t i = 0; i < h; ++i) {
    const T kept = values[i] * scale;
    values[i] = lanes[i] < threshold ? T(0) : kept;
  }
}

// scratch.sum = dropout(x) + residual; uses scratch.other.
template <typename T>
inline void dropout_add(const LayerNorm& of, int64_t row, Scratch<T>& scratch) {
  T* __restrict__ sum = scratch.sum.data();
  read_row(of.x, of.x_type, row, of.h, sum);
  if (scratch.rate.threshold) {
    random_lanes(row_site(of.keys[row], of.site), of.h, scratch.lanes.data());
    drop(scratch.lanes.data(), scratch.rate.threshold, scratch.scale, of.h, sum);
  }
  if (of.residual) {
    T* __restrict__ residual = scratch.other.data();
    read_row(of.residual, of.residual_type, row, of.h, residual);
    for (int64_t i = 0; i < of.h; ++i) sum[i] += residual[i];
  }
}

template <typename T>
inline void forward(const LayerNorm& of, const void* bias_data, double eps, int64_t begin, int64_t end, void* out,
                    Number out_type, void* mean_data, void* rstd_data) {
  Scratch<T> scratch(of);
  const T* __restrict__ weight = static_cast<const T*>(of.weight);
  const T* __restrict__ bias = static_cast<const T*>(bias_data);
  for (int64_t row = begin; row < end; ++row) {
    dropout_add(of, row, scratch);
    const T* __restrict__ z = scratch.sum.data();
    T* __restrict__ result = scratch.other.data();
    const T mean = sum_of<T>(of.h, [](const auto& value) { return value; }, z) / static_cast<T>(of.h);
    const T squares = sum_of<T>(of.h, [mean](const auto& value) { return (value - mean) * (value - mean); }, z);
    const T rstd = T(1) / std::sqrt(squares / static_cast<T>(of.h) + static_cast<T>(eps));
    for (int64_t i = 0; i < of.h; ++i) result[i] = (z[i] - mean) * rstd * weight[i] + bias[i];
    write_row(result, out_type, row, of.h, out);
    static_cast<T*>(mean_data)[row] = mean;
    static_cast<T*>(rstd_data)[row] = rstd;
  }
}

template <typename T>
inline void backward(const LayerNorm& of, const void* gradient_data, Number gradient_type, const void* mean_data,
                     const void* rstd_data, int64_t begin, int64_t end, void* dx, void* dresidual, void* dweight_data,
                     void* dbias_data) {
  Scratch<T> scratch(of);
  const T* __restrict__ weight = static_cast<const T*>(of.weight);
  T* __restrict__ dweight = static_cast<T*>(dweight_data);
  T* __restrict__ dbias = static_cast<T*>(dbias_data);
  for (int64_t i = 0; i < of.h; ++i) dweight[i] = dbias[i] = 0;
  for (int64_t row = begin; row < end; ++row) {
    const T mean = static_cast<const T*>(mean_data)[row], rstd = static_cast<const T*>(rstd_data)[row];
    dropout_add(of, row, scratch);
    T* __restrict__ normal = scratch.sum.data();
    T* __restrict__ gradient = scratch.third.data();
    T* __restrict__ result = scratch.other.data();
    read_row(gradient_data, gradient_type, row, of.h, gradient);
    for (int64_t i = 0; i < of.h; ++i) {
      normal[i] = (normal[i] - mean) * rstd;
      dweight[i] += gradient[i] * normal[i];
      dbias[i] += gradient[i];
      gradient[i] *= weight[i];
    }
    const T level = sum_of<T>(of.h, [](const auto& value) { return value; }, gradient) / static_cast<T>(of.h);
    const T slope = sum_of<T>(of.h, [](const auto& a, const auto& b) { return a * b; }, gradient, normal) / static_cast<T>(of.h);
    for (int64_t i = 0; i < of.h; ++i) result[i] = rstd * (gradient[i] - level - normal[i] * slope);
    if (dresidual) write_row(result, of.residual_type, row, of.h, dresidual);
    if (scratch.rate.threshold) drop(scratch.lanes.data(), scratch.rate.threshold, scratch.scale, of.h, result);
    write_row(result, of.x_type, row, of.h, dx);
  }
}

// target_clones does not apply to templates: plain functions for each compute type.
#define LAYER_NORM(T)                                                                                                \
  FOR_EVERY_PROCESSOR void forward_##T(const LayerNorm& of, const void* bias, double eps, int64_t begin, int64_t end, \
                                       void* out, Number out_type, void* mean, void* rstd) {                         \
    forward<T>(of, bias, eps, begin, end, out, out_type, mean, rstd);                                                \
  }                                                                                                                  \
  FOR_EVERY_PROCESSOR void backward_##T(const LayerNorm& of, const void* gradient, Number gradient_type,             \
                                        const void* mean, const void* rstd, int64_t begin, int64_t end, void* dx,    \
                                        void* dresidual, void* dweight, void* dbias) {                               \
    backward<T>(of, gradient, gradient_type, mean, rstd, begin, end, dx, dresidual, dweight, dbias);                 \
  }
LAYER_NORM(float)
LAYER_NORM(double)

}  // namespace

void layer_norm_cpu(const LayerNorm& of, const void* bias, double eps, int64_t begin, int64_t end, void* out,
                    Number out_type, void* mean, void* rstd) {
  (of.x_type == Number::kFloat64 ? forward_double : forward_float)(of, bias, eps, begin, end, out, out_type, mean,
                                                                   rstd);
}

void layer_norm_backward_cpu(const LayerNorm& of, const void* gradient, Number gradient_type, const void* mean,
                             const void* rstd, int64_t begin, int64_t end, void* dx, void* dresidual, void* dweight,
                             void* dbias) {
  (of.x_type == Number::kFloat64 ? backward_double : backward_float)(of, gradient, gradient_type, mean, rstd, begin,
                                                                     end, dx, dresidual, dweight, dbias);
}
