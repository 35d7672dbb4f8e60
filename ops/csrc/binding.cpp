// The torch binding: schemas and checks of the operators, and their implementations for CPU and CUDA tensors.
//
// Uses only LibTorch's stable ABI as of 2.10 (TORCH_TARGET_VERSION in setup.py) and no Python, so that one build serves
// later versions of both.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#ifdef USE_CUDA
#include <cuda_runtime_api.h>
#endif

#include <algorithm>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>

#include "kernels.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::parallel_for;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

Tensor as_contiguous(const Tensor& of) { return of.is_contiguous() ? of : torch::stable::contiguous(of); }

// Uninitialised, on the device of `of`. new_empty would call the dispatcher twice.
Tensor room(const Tensor& of, Sizes sizes, ScalarType dtype) {
  return torch::stable::empty(sizes, dtype, std::nullopt, of.device());
}
Tensor room_like(const Tensor& of) { return room(of, of.sizes(), of.scalar_type()); }

std::string text_of(Sizes sizes) {
  std::ostringstream text;
  text << "(";
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << ")";
  return text.str();
}

// Waking a thread costs some tens of microseconds, so a task is a range of images of a few hundred microseconds.
int64_t images_per_thread(int64_t work_per_image) {
  return std::max<int64_t>(1, (1 << 20) / std::max<int64_t>(1, work_per_image));
}

// Boxes as float32, contiguous, as required by the loops.
Tensor plain_boxes(const Tensor& boxes) {
  const bool plain = boxes.scalar_type() == ScalarType::Float;
  return as_contiguous(plain ? boxes : torch::stable::to(boxes, ScalarType::Float));
}

Tensor mask_overlapping_on_cpu(const Tensor& boxes, const Tensor& seeds, const std::optional<Tensor>& valid,
                               double threshold) {
  const Tensor b = plain_boxes(boxes), s = as_contiguous(seeds);
  const Tensor v = valid ? as_contiguous(*valid) : Tensor();
  Tensor out = room_like(s);
  const int64_t batch = b.size(0), n = b.size(1);
  const bool* v_data = valid ? v.const_data_ptr<bool>() : nullptr;
  parallel_for(0, batch, images_per_thread(n * n), [&](int64_t begin, int64_t end) {
    mask_overlapping_cpu(b.const_data_ptr<float>(), s.const_data_ptr<bool>(), v_data, begin, end, n,
                         static_cast<float>(threshold), out.mutable_data_ptr<bool>());
  });
  return out;
}

Number number_of(ScalarType type) {
  if (type == ScalarType::Double) return Number::kFloat64;
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
                  "twelve_in_one: no kernel for ", type);
  return type == ScalarType::Float ? Number::kFloat32 : type == ScalarType::Half ? Number::kFloat16 : Number::kBFloat16;
}
// mask_regions has no float64 kernel: ops/registration.py converts.
Number number_of_features(ScalarType type) {
  STD_TORCH_CHECK(type != ScalarType::Double, "mask_regions: no kernel for ", type);
  return number_of(type);
}

Tensor room_for_rows(const Tensor& features, ScalarType dtype) {
  return room(features, {features.size(0), features.size(1) + 1, features.size(2)}, dtype);
}

Tensor mask_regions_on_cpu(const Tensor& features, const Tensor& visible, ScalarType dtype) {
  const Tensor f = as_contiguous(features), v = as_contiguous(visible);
  Tensor out = room_for_rows(f, dtype);
  const int64_t batch = f.size(0), n = f.size(1), size = f.size(2);
  const Number in = number_of_features(f.scalar_type()), to = number_of_features(dtype);
  parallel_for(0, batch, images_per_thread(n * size), [&](int64_t begin, int64_t end) {
    mask_regions_cpu(f.const_data_ptr(), in, v.const_data_ptr<bool>(), begin, end, n, size, out.mutable_data_ptr(), to);
  });
  return out;
}

// Most checks are in ops/registration.py; these prevent out-of-bounds access by direct calls of an operator.
void check_keys(const Tensor& keys, Sizes shape, const Tensor& of) {
  STD_TORCH_CHECK(keys.scalar_type() == ScalarType::Long && keys.sizes() == shape && keys.device() == of.device(),
                  "keys should be int64 ", text_of(shape), " on the device of the other tensors");
}
void check_rate(double p) {
  STD_TORCH_CHECK(p >= 0 && p < 1 - 0x1p-17, "p should be at least 0 and below 1, and is ", p);
}

Tensor dropout_on_cpu(const Tensor& x, const Tensor& keys, int64_t site, double p) {
  STD_TORCH_CHECK(x.dim() == 2, "x should be (n, h)");
  check_keys(keys, {x.size(0)}, x);
  check_rate(p);
  const Tensor in = as_contiguous(x), k = as_contiguous(keys);
  Tensor out = room_like(in);
  const int64_t n = in.size(0), h = in.size(1);
  const Number number = number_of(in.scalar_type());
  parallel_for(0, n, images_per_thread(2 * h), [&](int64_t begin, int64_t end) {
    dropout_cpu(in.const_data_ptr(), number, k.const_data_ptr<int64_t>(), site, p, begin, end, h,
                out.mutable_data_ptr());
  });
  return out;
}

void check_attention(const Tensor& probs, const Tensor& query_keys, const Tensor& key_keys, double p) {
  STD_TORCH_CHECK(probs.dim() == 4, "probs should be (B, heads, L, M)");
  check_keys(query_keys, {probs.size(0), probs.size(2)}, probs);
  check_keys(key_keys, {probs.size(0), probs.size(3)}, probs);
  STD_TORCH_CHECK(p >= 0 && p < 1 - 0x1p-25, "p should be at least 0 and below 1, and is ", p);
}

Tensor attention_dropout_on_cpu(const Tensor& probs, const Tensor& query_keys, const Tensor& key_keys,
                                    int64_t site, double p) {
  check_attention(probs, query_keys, key_keys, p);
  const Tensor in = as_contiguous(probs), q = as_contiguous(query_keys), k = as_contiguous(key_keys);
  Tensor out = room_like(in);
  const int64_t heads = in.size(1), queries = in.size(2), columns = in.size(3);
  const Number number = number_of(in.scalar_type());
  parallel_for(0, in.size(0) * heads * queries, images_per_thread(4 * columns), [&](int64_t begin, int64_t end) {
    attention_dropout_cpu(in.const_data_ptr(), number, q.const_data_ptr<int64_t>(), k.const_data_ptr<int64_t>(), site,
                          p, begin, end, heads, queries, columns, out.mutable_data_ptr());
  });
  return out;
}

// The tensors of a LayerNorm, contiguous, and the struct with pointers to their data.
struct LayerNormTensors {
  LayerNormTensors(const Tensor& x_in, const std::optional<Tensor>& residual_in, const Tensor& weight_in,
                   const std::optional<Tensor>& keys_in, int64_t site, double p)
      : x(as_contiguous(x_in)),
        weight(as_contiguous(weight_in)),
        statistic(x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float) {
    STD_TORCH_CHECK(x.dim() == 2, "x should be (n, h)");
    check_parameter(weight);
    check_rate(p);
    of = {x.size(0), x.size(1), x.const_data_ptr(), number_of(x.scalar_type()), nullptr, number_of(x.scalar_type()),
          weight.const_data_ptr(), nullptr, site, p};
    if (residual_in) {
      residual = as_contiguous(*residual_in);
      check_rows(residual);
      of.residual = residual.const_data_ptr();
      of.residual_type = number_of(residual.scalar_type());
    }
    if (p > 0) {
      STD_TORCH_CHECK(keys_in, "dropout needs keys");
      check_keys(*keys_in, {x.size(0)}, x);
      keys = as_contiguous(*keys_in);
      of.keys = keys.const_data_ptr<int64_t>();
    }
  }
  void check_parameter(const Tensor& values) const {
    STD_TORCH_CHECK(values.sizes() == Sizes{x.size(1)} && values.scalar_type() == statistic &&
                        values.device() == x.device(),
                    "weight and bias should be ", statistic, " (h) on the device of x");
  }
  void check_statistic(const Tensor& values) const {
    STD_TORCH_CHECK(values.sizes() == Sizes{x.size(0)} && values.scalar_type() == statistic &&
                        values.device() == x.device(),
                    "mean and rstd should be ", statistic, " (n) on the device of x");
  }
  // residual and gradient
  void check_rows(const Tensor& rows) const {
    STD_TORCH_CHECK(rows.sizes() == x.sizes() && rows.device() == x.device(), "expected the shape and device of x");
    check_type(rows.scalar_type());
  }
  void check_type(ScalarType type) const {
    STD_TORCH_CHECK((type == ScalarType::Double) == (statistic == ScalarType::Double),
                    "float64 goes with float64 alone");
  }
  Tensor room_for_statistics(Sizes sizes) const { return room(x, sizes, statistic); }

  Tensor x, residual, weight, keys;
  ScalarType statistic;
  LayerNorm of;
};

std::tuple<Tensor, Tensor, Tensor> layer_norm_on_cpu(const Tensor& x, const std::optional<Tensor>& residual,
                                                     const Tensor& weight, const Tensor& bias,
                                                     const std::optional<Tensor>& keys, int64_t site, double p,
                                                     double eps, ScalarType dtype) {
  const LayerNormTensors in(x, residual, weight, keys, site, p);
  const Tensor b = as_contiguous(bias);
  in.check_parameter(b);
  in.check_type(dtype);
  const int64_t n = in.of.n, h = in.of.h;
  Tensor out = room(in.x, {n, h}, dtype);
  Tensor mean = in.room_for_statistics({n}), rstd = in.room_for_statistics({n});
  const Number out_type = number_of(dtype);
  parallel_for(0, n, images_per_thread(8 * h), [&](int64_t begin, int64_t end) {
    layer_norm_cpu(in.of, b.const_data_ptr(), eps, begin, end, out.mutable_data_ptr(), out_type,
                   mean.mutable_data_ptr(), rstd.mutable_data_ptr());
  });
  return {out, mean, rstd};
}

// The sum of the rows of a contiguous (parts, h) tensor, which are added in order.
template <typename T>
void add_rows(const void* rows, int64_t parts, int64_t h, void* out) {
  const T* row = static_cast<const T*>(rows);
  T* sum = static_cast<T*>(out);
  std::fill(sum, sum + h, T(0));
  for (int64_t part = 0; part < parts; ++part, row += h) {
    for (int64_t column = 0; column < h; ++column) sum[column] += row[column];
  }
}

Tensor sum_of_rows(const Tensor& rows) {
  Tensor sum = room(rows, {rows.size(1)}, rows.scalar_type());
  const auto add = rows.scalar_type() == ScalarType::Double ? add_rows<double> : add_rows<float>;
  add(rows.const_data_ptr(), rows.size(0), rows.size(1), sum.mutable_data_ptr());
  return sum;
}

using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

FourTensors layer_norm_backward_on_cpu(const Tensor& gradient, const Tensor& x,
                                       const std::optional<Tensor>& residual, const Tensor& weight,
                                       const std::optional<Tensor>& keys, const Tensor& mean,
                                       const Tensor& rstd, int64_t site, double p) {
  const LayerNormTensors in(x, residual, weight, keys, site, p);
  const Tensor g = as_contiguous(gradient), m = as_contiguous(mean), r = as_contiguous(rstd);
  in.check_rows(g);
  in.check_statistic(m);
  in.check_statistic(r);
  const int64_t n = in.of.n, h = in.of.h;
  Tensor dx = room_like(in.x);
  Tensor dresidual = residual ? room_like(in.residual) : room(in.x, {0}, in.x.scalar_type());
  // The division of the rows depends only on n, so the sums are equal for any number of threads.
  const int64_t rows = std::max<int64_t>(16, (n + 63) / 64), parts = (n + rows - 1) / rows;
  Tensor dweights = in.room_for_statistics({parts, h}), dbiases = in.room_for_statistics({parts, h});
  const int64_t row_bytes = h * dweights.element_size();
  char* dweight = static_cast<char*>(dweights.mutable_data_ptr());
  char* dbias = static_cast<char*>(dbiases.mutable_data_ptr());
  parallel_for(0, parts, images_per_thread(8 * h * rows), [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      layer_norm_backward_cpu(in.of, g.const_data_ptr(), number_of(g.scalar_type()), m.const_data_ptr(),
                              r.const_data_ptr(), part * rows, std::min(n, (part + 1) * rows), dx.mutable_data_ptr(),
                              residual ? dresidual.mutable_data_ptr() : nullptr, dweight + part * row_bytes,
                              dbias + part * row_bytes);
    }
  });
  return {dx, dresidual, sum_of_rows(dweights), sum_of_rows(dbiases)};
}

#ifdef USE_CUDA
using torch::stable::accelerator::DeviceGuard;

void* current_stream(const Tensor& of) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(of.get_device_index(), &stream));
  return stream;
}

void check_cuda(int error, const char* name) {
  STD_TORCH_CHECK(error == 0, name, ": ", cudaGetErrorString(static_cast<cudaError_t>(error)));
}

Tensor dropout_on_cuda(const Tensor& x, const Tensor& keys, int64_t site, double p) {
  STD_TORCH_CHECK(x.dim() == 2, "x should be (n, h)");
  check_keys(keys, {x.size(0)}, x);
  check_rate(p);
  const DeviceGuard guard(x.get_device_index());
  const Tensor in = as_contiguous(x), k = as_contiguous(keys);
  Tensor out = room_like(in);
  check_cuda(dropout_cuda(in.const_data_ptr(), static_cast<int>(number_of(in.scalar_type())),
                          k.const_data_ptr<int64_t>(), site, p, in.size(0), in.size(1), out.mutable_data_ptr(),
                          current_stream(x)),
             "dropout");
  return out;
}

Tensor attention_dropout_on_cuda(const Tensor& probs, const Tensor& query_keys, const Tensor& key_keys,
                                     int64_t site, double p) {
  check_attention(probs, query_keys, key_keys, p);
  const DeviceGuard guard(probs.get_device_index());
  const Tensor in = as_contiguous(probs), q = as_contiguous(query_keys), k = as_contiguous(key_keys);
  Tensor out = room_like(in);
  check_cuda(attention_dropout_cuda(in.const_data_ptr(), static_cast<int>(number_of(in.scalar_type())),
                                    q.const_data_ptr<int64_t>(), k.const_data_ptr<int64_t>(), site, p, in.size(0),
                                    in.size(1), in.size(2), in.size(3), out.mutable_data_ptr(),
                                    current_stream(probs)),
             "attention_dropout");
  return out;
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_on_cuda(const Tensor& x, const std::optional<Tensor>& residual,
                                                      const Tensor& weight, const Tensor& bias,
                                                      const std::optional<Tensor>& keys, int64_t site, double p,
                                                      double eps, ScalarType dtype) {
  const DeviceGuard guard(x.get_device_index());
  const LayerNormTensors in(x, residual, weight, keys, site, p);
  const Tensor b = as_contiguous(bias);
  in.check_parameter(b);
  in.check_type(dtype);
  Tensor out = room(in.x, {in.of.n, in.of.h}, dtype);
  Tensor mean = in.room_for_statistics({in.of.n}), rstd = in.room_for_statistics({in.of.n});
  check_cuda(layer_norm_cuda(&in.of, b.const_data_ptr(), eps, out.mutable_data_ptr(),
                             static_cast<int>(number_of(dtype)), mean.mutable_data_ptr(), rstd.mutable_data_ptr(),
                             current_stream(x)),
             "dropout_add_layer_norm");
  return {out, mean, rstd};
}

FourTensors layer_norm_backward_on_cuda(const Tensor& gradient, const Tensor& x,
                                        const std::optional<Tensor>& residual, const Tensor& weight,
                                        const std::optional<Tensor>& keys, const Tensor& mean,
                                        const Tensor& rstd, int64_t site, double p) {
  const DeviceGuard guard(x.get_device_index());
  const LayerNormTensors in(x, residual, weight, keys, site, p);
  const Tensor g = as_contiguous(gradient), m = as_contiguous(mean), r = as_contiguous(rstd);
  in.check_rows(g);
  in.check_statistic(m);
  in.check_statistic(r);
  const int64_t n = in.of.n, h = in.of.h;
  Tensor dx = room_like(in.x);
  Tensor dresidual = residual ? room_like(in.residual) : room(in.x, {0}, in.x.scalar_type());
  const int64_t partials = layer_norm_partials_cuda(n, h);
  Tensor partial = in.room_for_statistics({partials, 2, h});
  Tensor dweight = in.room_for_statistics({h}), dbias = in.room_for_statistics({h});
  check_cuda(layer_norm_backward_cuda(&in.of, g.const_data_ptr(), static_cast<int>(number_of(g.scalar_type())),
                                      m.const_data_ptr(), r.const_data_ptr(), dx.mutable_data_ptr(),
                                      residual ? dresidual.mutable_data_ptr() : nullptr, partial.mutable_data_ptr(),
                                      partials, dweight.mutable_data_ptr(), dbias.mutable_data_ptr(),
                                      current_stream(x)),
             "dropout_add_layer_norm_backward");
  return {dx, dresidual, dweight, dbias};
}

Tensor mask_overlapping_on_cuda(const Tensor& boxes, const Tensor& seeds, const std::optional<Tensor>& valid,
                                double threshold) {
  const DeviceGuard guard(boxes.get_device_index());
  Tensor b = plain_boxes(boxes);
  const bool aligned = reinterpret_cast<uintptr_t>(b.const_data_ptr<float>()) % 16 == 0;
  if (!aligned) b = torch::stable::clone(b);  // the kernel reads a box at once
  const Tensor s = as_contiguous(seeds);
  const Tensor v = valid ? as_contiguous(*valid) : Tensor();
  Tensor out = room_like(s);
  const int error = mask_overlapping_cuda(
      b.const_data_ptr<float>(), s.const_data_ptr<bool>(), valid ? v.const_data_ptr<bool>() : nullptr, b.size(0),
      b.size(1), static_cast<float>(threshold), out.mutable_data_ptr<bool>(), current_stream(boxes));
  STD_TORCH_CHECK(error == 0, "mask_overlapping: ", cudaGetErrorString(static_cast<cudaError_t>(error)));
  return out;
}

Tensor mask_regions_on_cuda(const Tensor& features, const Tensor& visible, ScalarType dtype) {
  const DeviceGuard guard(features.get_device_index());
  const Tensor f = as_contiguous(features), v = as_contiguous(visible);
  Tensor out = room_for_rows(f, dtype);
  const int error = mask_regions_cuda(f.const_data_ptr(), static_cast<int>(number_of_features(f.scalar_type())),
                                      v.const_data_ptr<bool>(), f.size(0), f.size(1), f.size(2), out.mutable_data_ptr(),
                                      static_cast<int>(number_of_features(dtype)), current_stream(features));
  STD_TORCH_CHECK(error == 0, "mask_regions: ", cudaGetErrorString(static_cast<cudaError_t>(error)));
  return out;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(twelve_in_one, library) {
  library.def("mask_overlapping(Tensor boxes, Tensor seeds, Tensor? valid, float threshold) -> Tensor");
  library.def("mask_regions(Tensor features, Tensor visible, ScalarType dtype) -> Tensor");
  library.def("dropout(Tensor x, Tensor keys, int site, float p) -> Tensor");
  library.def(
      "attention_dropout(Tensor probs, Tensor query_keys, Tensor key_keys, int site, float p) -> Tensor");
  library.def(
      "dropout_add_layer_norm(Tensor x, Tensor? residual, Tensor weight, Tensor bias, Tensor? keys, int site, float p, "
      "float eps, ScalarType dtype) -> (Tensor, Tensor, Tensor)");
  library.def(
      "dropout_add_layer_norm_backward(Tensor gradient, Tensor x, Tensor? residual, Tensor weight, Tensor? keys, "
      "Tensor mean, Tensor rstd, int site, float p) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(twelve_in_one, CPU, library) {
  library.impl("mask_overlapping", TORCH_BOX(&mask_overlapping_on_cpu));
  library.impl("mask_regions", TORCH_BOX(&mask_regions_on_cpu));
  library.impl("dropout", TORCH_BOX(&dropout_on_cpu));
  library.impl("attention_dropout", TORCH_BOX(&attention_dropout_on_cpu));
  library.impl("dropout_add_layer_norm", TORCH_BOX(&layer_norm_on_cpu));
  library.impl("dropout_add_layer_norm_backward", TORCH_BOX(&layer_norm_backward_on_cpu));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(twelve_in_one, CUDA, library) {
  library.impl("mask_overlapping", TORCH_BOX(&mask_overlapping_on_cuda));
  library.impl("mask_regions", TORCH_BOX(&mask_regions_on_cuda));
  library.impl("dropout", TORCH_BOX(&dropout_on_cuda));
  library.impl("attention_dropout", TORCH_BOX(&attention_dropout_on_cuda));
  library.impl("dropout_add_layer_norm", TORCH_BOX(&layer_norm_on_cuda));
  library.impl("dropout_add_layer_norm_backward", TORCH_BOX(&layer_norm_backward_on_cuda));
}
#endif
