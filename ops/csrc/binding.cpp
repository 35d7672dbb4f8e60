// The torch side: the operator's schema, checks, and what it does for CPU and CUDA tensors.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#ifdef WITH_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#endif

#include <algorithm>
#include <optional>

#include "kernels.h"

namespace {

// Boxes as the loops want them: float32, contiguous.
at::Tensor plain_boxes(const at::Tensor& boxes) { return boxes.to(at::kFloat).contiguous(); }

at::Tensor mask_overlapping_on_cpu(const at::Tensor& boxes, const at::Tensor& seeds,
                                   const std::optional<at::Tensor>& valid, double threshold) {
  const at::Tensor b = plain_boxes(boxes), s = seeds.contiguous();
  const at::Tensor v = valid ? valid->contiguous() : at::Tensor();
  at::Tensor out = at::empty(seeds.sizes(), s.options());
  const int64_t batch = b.size(0), n = b.size(1);
  const bool* v_data = valid ? v.const_data_ptr<bool>() : nullptr;
  // Waking a thread costs some tens of microseconds: images are shared out in runs of a few hundred microseconds.
  const int64_t grain = std::max<int64_t>(1, (1 << 20) / std::max<int64_t>(1, n * n));
  at::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    mask_overlapping_cpu(b.const_data_ptr<float>(), s.const_data_ptr<bool>(), v_data, begin, end, n,
                         static_cast<float>(threshold), out.mutable_data_ptr<bool>());
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
      b.size(1), static_cast<float>(threshold), out.mutable_data_ptr<bool>(), at::cuda::getCurrentCUDAStream());
  TORCH_CHECK(error == 0, "mask_overlapping: ", cudaGetErrorString(static_cast<cudaError_t>(error)));
  return out;
}
#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(twelve_in_one, library) {
  library.def("mask_overlapping(Tensor boxes, Tensor seeds, Tensor? valid, float threshold) -> Tensor");
}

TORCH_LIBRARY_IMPL(twelve_in_one, CPU, library) { library.impl("mask_overlapping", &mask_overlapping_on_cpu); }

#ifdef WITH_CUDA
TORCH_LIBRARY_IMPL(twelve_in_one, CUDA, library) { library.impl("mask_overlapping", &mask_overlapping_on_cuda); }
#endif
