// The torch side: the operators' schemas, checks, and what they do for CPU and CUDA tensors.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#ifdef WITH_CUDA
// Not ATen/cuda/CUDAContext.h, which wants the headers of cuBLAS, cuSPARSE and cuSOLVER to be installed too.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include <algorithm>
#include <optional>

#include "kernels.h"

namespace {

// Waking a thread costs some tens of microseconds: images are shared out in runs of a few hundred microseconds.
int64_t images_per_thread(int64_t work_per_image) {
  return std::max<int64_t>(1, (1 << 20) / std::max<int64_t>(1, work_per_image));
}

// Boxes as the loops want them: float32, contiguous.
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
  TORCH_CHECK(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, "mask_regions: no kernel for ", type);
  return type == at::kFloat ? Number::kFloat32 : type == at::kHalf ? Number::kFloat16 : Number::kBFloat16;
}

at::Tensor room_for_rows(const at::Tensor& features, at::ScalarType dtype) {
  return at::empty({features.size(0), features.size(1) + 1, features.size(2)}, features.options().dtype(dtype));
}

at::Tensor mask_regions_on_cpu(const at::Tensor& features, const at::Tensor& visible, at::ScalarType dtype) {
  const at::Tensor f = features.contiguous(), v = visible.contiguous();
  at::Tensor out = room_for_rows(f, dtype);
  const int64_t batch = f.size(0), n = f.size(1), size = f.size(2);
  const Number in = number_of(f.scalar_type()), to = number_of(dtype);
  at::parallel_for(0, batch, images_per_thread(n * size), [&](int64_t begin, int64_t end) {
    mask_regions_cpu(f.const_data_ptr(), in, v.const_data_ptr<bool>(), begin, end, n, size, out.mutable_data_ptr(), to);
  });
  return out;
}

#ifdef WITH_CUDA
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
  const int error = mask_regions_cuda(f.const_data_ptr(), static_cast<int>(number_of(f.scalar_type())),
                                      v.const_data_ptr<bool>(), f.size(0), f.size(1), f.size(2), out.mutable_data_ptr(),
                                      static_cast<int>(number_of(dtype)), c10::cuda::getCurrentCUDAStream());
  TORCH_CHECK(error == 0, "mask_regions: ", cudaGetErrorString(static_cast<cudaError_t>(error)));
  return out;
}
#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(twelve_in_one, library) {
  library.def("mask_overlapping(Tensor boxes, Tensor seeds, Tensor? valid, float threshold) -> Tensor");
  library.def("mask_regions(Tensor features, Tensor visible, ScalarType dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(twelve_in_one, CPU, library) {
  library.impl("mask_overlapping", &mask_overlapping_on_cpu);
  library.impl("mask_regions", &mask_regions_on_cpu);
}

#ifdef WITH_CUDA
TORCH_LIBRARY_IMPL(twelve_in_one, CUDA, library) {
  library.impl("mask_overlapping", &mask_overlapping_on_cuda);
  library.impl("mask_regions", &mask_regions_on_cuda);
}
#endif
