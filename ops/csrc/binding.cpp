// The torch binding: schemas and checks of the operators, and their implementations for CPU and CUDA tensors.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#ifdef WITH_CUDA
// Not ATen/cuda/CUDAContext.h, which requires the headers of cuBLAS, cuSPARSE and cuSOLVER.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include <algorithm>
#include <optional>
#include <tuple>

#include "kernels.h"

namespace {

// Waking a thread costs some tens of microseconds, so a task is a range of images of a few hundred microseconds.
int64_t images_per_thread(int64_t work_per_image) {
  return std::max<int64_t>(1, (1 << 20) / std::max<int64_t>(1, work_per_image));
}

// Boxes as float32, contiguous, as required by the loops.
at::Tensor plain_boxes(const at::Tensor& boxes) { return boxes.to(at::kFloat).contiguous(); }

at::Tensor mask_overlapping_on_cpu(const at::Tensor& boxes, const at::Tensor& seeds,
                                   const std::optional<at::Tensor>& valid, double threshold) {
  const at::Tensor b = plain_boxes(boxes), s = seeds.contiguous();
  const at::Tensor v = valid ? valid->contiguous() : at::Tensor();
  at::Tensor out = at::empty(seeds.sizes(), s.options());
  const int64_t batch = b.size(0), n = b.size(1);
  const bool* v_data = valid ? v.const_data_ptr<bool>() : nullptr;
  at::parallel_for(0, batch, images_per_thread(n * n), [&](int64_t begin, int64_t end) {
    mask_overlapping_cpu(b.const_data_ptr<float>(), s.const_data_ptr<bool>(), v_data, begin, end, n,
                         static_cast<float>(threshold), out.mutable_data_ptr<bool>());
  });
  return out;
}

Number number_of(at::ScalarType type) {
  if (type == at::kDouble) return Number::kFloat64;
  TORCH_CHECK(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, "twelve_in_one: no kernel for ", type);
  return type == at::kFloat ? Number::kFloat32 : type == at::kHalf ? Number::kFloat16 : Number::kBFloat16;
}
// mask_regions has no float64 kernel: ops/registration.py converts.
Number number_of_features(at::ScalarType type) {
  TORCH_CHECK(type != at::kDouble, "mask_regions: no kernel for ", type);
  return number_of(type);
}

at::Tensor room_for_rows(const at::Tensor& features, at::ScalarType dtype) {
  return at::empty({features.size(0), features.size(1) + 1, features.size(2)}, features.options().dtype(dtype));
}

at::Tensor mask_regions_on_cpu(const at::Tensor& features, const at::Tensor& visible, at::ScalarType dtype) {
  const at::Tensor f = features.contiguous(), v = visible.contiguous();
  at::Tensor out = room_for_rows(f, dtype);
  const int64_t batch = f.size(0), n = f.size(1), size = f.size(2);
  const Number in = number_of_features(f.scalar_type()), to = number_of_features(dtype);
  at::parallel_for(0, batch, images_per_thread(n * size), [&](int64_t begin, int64_t end) {
    mask_regions_cpu(f.const_data_ptr(), in, v.const_data_ptr<bool>(), begin, end, n, size, out.mutable_data_ptr(), to);
  });
  return out;
}

// Most checks are in ops/registration.py; these prevent out-of-bounds access by direct calls of an operator.
void check_keys(const at::Tensor& keys, at::IntArrayRef shape, const at::Tensor& of) {
  TORCH_CHECK(keys.scalar_type() == at::kLong && keys.sizes() == shape && keys.device() == of.device(),
              "keys should be int64 ", shape, " on ", of.device());
}
void check_rate(double p) { TORCH_CHECK(p >= 0 && p < 1 - 0x1p-17, "p should be at least 0 and below 1, and is ", p); }

at::Tensor room_like(const at::Tensor& of) { return at::empty(of.sizes(), of.options()); }

at::Tensor dropout_on_cpu(const at::Tensor& x, const at::Tensor& keys, int64_t site, double p) {
  TORCH_CHECK(x.dim() == 2, "x should be (n, h)");
  check_keys(keys, {x.size(0)}, x);
  check_rate(p);
  const at::Tensor in = x.contiguous(), k = keys.contiguous();
  at::Tensor out = room_like(in);
  const int64_t n = in.size(0), h = in.size(1);
  const Number number = number_of(in.scalar_type());
  at::parallel_for(0, n, images_per_thread(2 * h), [&](int64_t begin, int64_t end) {
    dropout_cpu(in.const_data_ptr(), number, k.const_data_ptr<int64_t>(), site, p, begin, end, h,
                out.mutable_data_ptr());
  });
  return out;
}

void check_attention(const at::Tensor& probs, const at::Tensor& query_keys, const at::Tensor& key_keys, double p) {
  TORCH_CHECK(probs.dim() == 4, "probs should be (B, heads, L, M)");
  check_keys(query_keys, {probs.size(0), probs.size(2)}, probs);
  check_keys(key_keys, {probs.size(0), probs.size(3)}, probs);
  TORCH_CHECK(p >= 0 && p < 1 - 0x1p-25, "p should be at least 0 and below 1, and is ", p);
}

at::Tensor attention_dropout_on_cpu(const at::Tensor& probs, const at::Tensor& query_keys, const at::Tensor& key_keys,
                                    int64_t site, double p) {
  check_attention(probs, query_keys, key_keys, p);
  const at::Tensor in = probs.contiguous(), q = query_keys.contiguous(), k = key_keys.contiguous();
  at::Tensor out = room_like(in);
  const int64_t heads = in.size(1), queries = in.size(2), columns = in.size(3);
  const Number number = number_of(in.scalar_type());
  at::parallel_for(0, in.size(0) * heads * queries, images_per_thread(4 * columns), [&](int64_t begin, int64_t end) {
    attention_dropout_cpu(in.const_data_ptr(), number, q.const_data_ptr<int64_t>(), k.const_data_ptr<int64_t>(), site,
                          p, begin, end, heads, queries, columns, out.mutable_data_ptr());
  });
  return out;
}

// The tensors of a LayerNorm, contiguous, and the struct with pointers to their data.
struct LayerNormTensors {
  LayerNormTensors(const at::Tensor& x_in, const std::optional<at::Tensor>& residual_in, const at::Tensor& weight_in,
                   const std::optional<at::Tensor>& keys_in, int64_t site, double p)
      : x(x_in.contiguous()),
        weight(weight_in.contiguous()),
        statistic(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat) {
    TORCH_CHECK(x.dim() == 2, "x should be (n, h)");
    check_parameter(weight);
    check_rate(p);
    of = {x.size(0), x.size(1), x.const_data_ptr(), number_of(x.scalar_type()), nullptr, number_of(x.scalar_type()),
          weight.const_data_ptr(), nullptr, site, p};
    if (residual_in) {
      residual = residual_in->contiguous();
      check_rows(residual);
      of.residual = residual.const_data_ptr();
      of.residual_type = number_of(residual.scalar_type());
    }
    if (p > 0) {
      TORCH_CHECK(keys_in, "dropout needs keys");
      check_keys(*keys_in, {x.size(0)}, x);
      keys = keys_in->contiguous();
      of.keys = keys.const_data_ptr<int64_t>();
    }
  }
  void check_parameter(const at::Tensor& values) const {
    TORCH_CHECK(values.sizes() == at::IntArrayRef{x.size(1)} && values.scalar_type() == statistic &&
                    values.device() == x.device(),
                "weight and bias should be ", statistic, " (h) on ", x.device());
  }
  void check_statistic(const at::Tensor& values) const {
    TORCH_CHECK(values.sizes() == at::IntArrayRef{x.size(0)} && values.scalar_type() == statistic &&
                    values.device() == x.device(),
                "mean and rstd should be ", statistic, " (n) on ", x.device());
  }
  // residual and gradient
  void check_rows(const at::Tensor& rows) const {
    TORCH_CHECK(rows.sizes() == x.sizes() && rows.device() == x.device(), "expected the shape and device of x");
    check_type(rows.scalar_type());
  }
  void check_type(at::ScalarType type) const {
    TORCH_CHECK((type == at::kDouble) == (statistic == at::kDouble), "float64 goes with float64 alone");
  }
  at::TensorOptions statistics() const { return x.options().dtype(statistic); }

  at::Tensor x, residual, weight, keys;
  at::ScalarType statistic;
  LayerNorm of;
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_on_cpu(const at::Tensor& x,
                                                                 const std::optional<at::Tensor>& residual,
                                                                 const at::Tensor& weight, const at::Tensor& bias,
                                                                 const std::optional<at::Tensor>& keys, int64_t site,
                                                                 double p, double eps, at::ScalarType dtype) {
  const LayerNormTensors in(x, residual, weight, keys, site, p);
  const at::Tensor b = bias.contiguous();
  in.check_parameter(b);
  in.check_type(dtype);
  const int64_t n = in.of.n, h = in.of.h;
  at::Tensor out = at::empty({n, h}, in.x.options().dtype(dtype));
  at::Tensor mean = at::empty({n}, in.statistics()), rstd = at::empty({n}, in.statistics());
  const Number out_type = number_of(dtype);
  at::parallel_for(0, n, images_per_thread(8 * h), [&](int64_t begin, int64_t end) {
    layer_norm_cpu(in.of, b.const_data_ptr(), eps, begin, end, out.mutable_data_ptr(), out_type,
                   mean.mutable_data_ptr(), rstd.mutable_data_ptr());
  });
  return {out, mean, rstd};
}

// Adds the rows of a (parts, h) tensor in order.
at::Tensor add_rows(const at::Tensor& rows) {
  at::Tensor sum = at::zeros({rows.size(1)}, rows.options());
  for (int64_t row = 0; row < rows.size(0); ++row) sum.add_(rows[row]);
  return sum;
}

using FourTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

FourTensors layer_norm_backward_on_cpu(const at::Tensor& gradient, const at::Tensor& x,
                                       const std::optional<at::Tensor>& residual, const at::Tensor& weight,
                                       const std::optional<at::Tensor>& keys, const at::Tensor& mean,
                                       const at::Tensor& rstd, int64_t site, double p) {
  const LayerNormTensors in(x, residual, weight, keys, site, p);
  const at::Tensor g = gradient.contiguous(), m = mean.contiguous(), r = rstd.contiguous();
  in.check_rows(g);
  in.check_statistic(m);
  in.check_statistic(r);
  const int64_t n = in.of.n, h = in.of.h;
  at::Tensor dx = room_like(in.x);
  at::Tensor dresidual = residual ? room_like(in.residual) : at::empty({0}, in.x.options());
  // The division of the rows depends only on n, so the sums are equal for any number of threads.
  const int64_t rows = std::max<int64_t>(16, (n + 63) / 64), parts = (n + rows - 1) / rows;
  at::Tensor dweights = at::empty({parts, h}, in.statistics()), dbiases = at::empty({parts, h}, in.statistics());
  const int64_t row_bytes = h * dweights.element_size();
  char* dweight = static_cast<char*>(dweights.mutable_data_ptr());
  char* dbias = static_cast<char*>(dbiases.mutable_data_ptr());
  at::parallel_for(0, parts, images_per_thread(8 * h * rows), [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      layer_norm_backward_cpu(in.of, g.const_data_ptr(), number_of(g.scalar_type()), m.const_data_ptr(),
                              r.const_data_ptr(), part * rows, std::min(n, (part + 1) * rows), dx.mutable_data_ptr(),
                              residual ? dresidual.mutable_data_ptr() : nullptr, dweight + part * row_bytes,
                              dbias + part * row_bytes);
    }
  });
  return {dx, dresidual, add_rows(dweights), add_rows(dbiases)};
}

#ifdef WITH_CUDA
void check_cuda(int error, const char* name) {
  TORCH_CHECK(error == 0, name, ": ", cudaGetErrorString(static_cast<cudaError_t>(error)));
}

at::Tensor dropout_on_cuda(const at::Tensor& x, const at::Tensor& keys, int64_t site, double p) {
  TORCH_CHECK(x.dim() == 2, "x should be (n, h)");
  check_keys(keys, {x.size(0)}, x);
  check_rate(p);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor in = x.contiguous(), k = keys.contiguous();
  at::Tensor out = room_like(in);
  check_cuda(dropout_cuda(in.const_data_ptr(), static_cast<int>(number_of(in.scalar_type())),
                          k.const_data_ptr<int64_t>(), site, p, in.size(0), in.size(1), out.mutable_data_ptr(),
                          c10::cuda::getCurrentCUDAStream()),
             "dropout");
  return out;
}

at::Tensor attention_dropout_on_cuda(const at::Tensor& probs, const at::Tensor& query_keys, const at::Tensor& key_keys,
                                     int64_t site, double p) {
  check_attention(probs, query_keys, key_keys, p);
  const c10::cuda::CUDAGuard guard(probs.device());
  const at::Tensor in = probs.contiguous(), q = query_keys.contiguous(), k = key_keys.contiguous();
  at::Tensor out = room_like(in);
  check_cuda(attention_dropout_cuda(in.const_data_ptr(), static_cast<int>(number_of(in.scalar_type())),
                                    q.const_data_ptr<int64_t>(), k.const_data_ptr<int64_t>(), site, p, in.size(0),
                                    in.size(1), in.size(2), in.size(3), out.mutable_data_ptr(),
                                    c10::cuda::getCurrentCUDAStream()),
             "attention_dropout");
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_on_cuda(const at::Tensor& x,
                                                                  const std::optional<at::Tensor>& residual,
                                                                  const at::Tensor& weight, const at::Tensor& bias,
                                                                  const std::optional<at::Tensor>& keys, int64_t site,
                                                                  double p, double eps, at::ScalarType dtype) {
  const c10::cuda::CUDAGuard guard(x.device());
  const LayerNormTensors in(x, residual, weight, keys, site, p);
  const at::Tensor b = bias.contiguous();
  in.check_parameter(b);
  in.check_type(dtype);
  at::Tensor out = at::empty({in.of.n, in.of.h}, in.x.options().dtype(dtype));
  at::Tensor mean = at::empty({in.of.n}, in.statistics()), rstd = at::empty({in.of.n}, in.statistics());
  check_cuda(layer_norm_cuda(&in.of, b.const_data_ptr(), eps, out.mutable_data_ptr(),
                             static_cast<int>(number_of(dtype)), mean.mutable_data_ptr(), rstd.mutable_data_ptr(),
                             c10::cuda::getCurrentCUDAStream()),
             "dropout_add_layer_norm");
  return {out, mean, rstd};
}

FourTensors layer_norm_backward_on_cuda(const at::Tensor& gradient, const at::Tensor& x,
                                        const std::optional<at::Tensor>& residual, const at::Tensor& weight,
                                        const std::optional<at::Tensor>& keys, const at::Tensor& mean,
                                        const at::Tensor& rstd, int64_t site, double p) {
  const c10::cuda::CUDAGuard guard(x.device());
  const LayerNormTensors in(x, residual, weight, keys, site, p);
  const at::Tensor g = gradient.contiguous(), m = mean.contiguous(), r = rstd.contiguous();
  in.check_rows(g);
  in.check_statistic(m);
  in.check_statistic(r);
  const int64_t n = in.of.n, h = in.of.h;
  at::Tensor dx = room_like(in.x);
  at::Tensor dresidual = residual ? room_like(in.residual) : at::empty({0}, in.x.options());
  const int64_t partials = layer_norm_partials_cuda(n, h);
  at::Tensor partial = at::empty({partials, 2, h}, in.statistics());
  at::Tensor dweight = at::empty({h}, in.statistics()), dbias = at::empty({h}, in.statistics());
  check_cuda(layer_norm_backward_cuda(&in.of, g.const_data_ptr(), static_cast<int>(number_of(g.scalar_type())),
                                      m.const_data_ptr(), r.const_data_ptr(), dx.mutable_data_ptr(),
                                      residual ? dresidual.mutable_data_ptr() : nullptr, partial.mutable_data_ptr(),
                                      partials, dweight.mutable_data_ptr(), dbias.mutable_data_ptr(),
                                      c10::cuda::getCurrentCUDAStream()),
             "dropout_add_layer_norm_backward");
  return {dx, dresidual, dweight, dbias};
}

at::Tensor mask_overlapping_on_cuda(const at::Tensor& boxes, const at::Tensor& seeds,
                                    const std::optional<at::Tensor>& valid, double threshold) {
  const c10::cuda::CUDAGuard guard(boxes.device());
  at::Tensor b = plain_boxes(boxes);
  if (reinterpret_cast<uintptr_t>(b.const_data_ptr<float>()) % 16) b = b.clone();  // the kernel reads a box at once
  const at::Tensor s = seeds.contiguous();
  const at::Tensor v = valid ? valid->contiguous() : at::Tensor();
  at::Tensor out = at::empty(seeds.sizes(), s.options());
  const int error = mask_overlapping_cuda(
      b.const_data_ptr<float>(), s.const_data_ptr<bool>(), valid ? v.const_data_ptr<bool>() : nullptr, b.size(0),
      b.size(1), static_cast<float>(threshold), out.mutable_data_ptr<bool>(), c10::cuda::getCurrentCUDAStream());
  TORCH_CHECK(error == 0, "mask_overlapping: ", cudaGetErrorString(static_cast<cudaError_t>(error)));
  return out;
}

at::Tensor mask_regions_on_cuda(const at::Tensor& features, const at::Tensor& visible, at::ScalarType dtype) {
  const c10::cuda::CUDAGuard guard(features.device());
  const at::Tensor f = features.contiguous(), v = visible.contiguous();
  at::Tensor out = room_for_rows(f, dtype);
  const int error = mask_regions_cuda(f.const_data_ptr(), static_cast<int>(number_of_features(f.scalar_type())),
                                      v.const_data_ptr<bool>(), f.size(0), f.size(1), f.size(2), out.mutable_data_ptr(),
                                      static_cast<int>(number_of_features(dtype)), c10::cuda::getCurrentCUDAStream());
  TORCH_CHECK(error == 0, "mask_regions: ", cudaGetErrorString(static_cast<cudaError_t>(error)));
  return out;
}
#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(twelve_in_one, library) {
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

TORCH_LIBRARY_IMPL(twelve_in_one, CPU, library) {
  library.impl("mask_overlapping", &mask_overlapping_on_cpu);
  library.impl("mask_regions", &mask_regions_on_cpu);
  library.impl("dropout", &dropout_on_cpu);
  library.impl("attention_dropout", &attention_dropout_on_cpu);
  library.impl("dropout_add_layer_norm", &layer_norm_on_cpu);
  library.impl("dropout_add_layer_norm_backward", &layer_norm_backward_on_cpu);
}

#ifdef WITH_CUDA
TORCH_LIBRARY_IMPL(twelve_in_one, CUDA, library) {
  library.impl("mask_overlapping", &mask_overlapping_on_cuda);
  library.impl("mask_regions", &mask_regions_on_cuda);
  library.impl("dropout", &dropout_on_cuda);
  library.impl("attention_dropout", &attention_dropout_on_cuda);
  library.impl("dropout_add_layer_norm", &layer_norm_on_cuda);
  library.impl("dropout_add_layer_norm_backward", &layer_norm_backward_on_cuda);
}
#endif
