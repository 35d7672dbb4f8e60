// The CPU loop of region masking, without torch; every feature is read and written once.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "number.h"
#include "processors.h"

namespace {

template <typename In, typename Out>
inline void copy_and_add(const In* __restrict__ in, int64_t size, Out* __restrict__ out, float* __restrict__ sum) {
  for (int64_t i = 0; i < size; ++i) {
    const float value = widen(in[i]);
    sum[i] += value;
    narrow(value, out[i]);
  }
}

template <typename Out>
inline void write_mean(const float* __restrict__ sum, int64_t size, float count, Out* __restrict__ out) {
  for (int64_t i = 0; i < size; ++i) narrow(sum[i] / count, out[i]);
}

template <typename In, typename Out>
inline void mask_images(const In* features, const bool* visible, int64_t begin, int64_t end, int64_t n, int64_t size,
                        Out* out) {
  std::vector<float> sum(size);
  for (int64_t image = begin; image < end; ++image) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    Out* row = out + image * (n + 1) * size;
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
      Out* to = row + (i + 1) * size;
      if (visible[image * n + i]) {
        copy_and_add(features + (image * n + i) * size, size, to, sum.data());
        ++count;
      } else {
        std::fill(to, to + size, Out{});
      }
    }
    write_mean(sum.data(), size, static_cast<float>(std::max<int64_t>(count, 1)), row);
  }
}

// target_clones does not apply to templates: one plain function for each pair of types.
#define MASK_IMAGES(name, In, Out)                                                                             \
  FOR_EVERY_PROCESSOR void name(const void* features, const bool* visible, int64_t begin, int64_t end, int64_t n, \
                                int64_t size, void* out) {                                                     \
    mask_images(static_cast<const In*>(features), visible, begin, end, n, size, static_cast<Out*>(out));       \
  }
MASK_IMAGES(float32_to_float32, float, float)
MASK_IMAGES(float32_to_float16, float, Float16)
MASK_IMAGES(float32_to_bfloat16, float, BFloat16)
MASK_IMAGES(float16_to_float32, Float16, float)
MASK_IMAGES(float16_to_float16, Float16, Float16)
MASK_IMAGES(float16_to_bfloat16, Float16, BFloat16)
MASK_IMAGES(bfloat16_to_float32, BFloat16, float)
MASK_IMAGES(bfloat16_to_float16, BFloat16, Float16)
MASK_IMAGES(bfloat16_to_bfloat16, BFloat16, BFloat16)

}  // namespace

void mask_regions_cpu(const void* features, Number in, const bool* visible, int64_t begin, int64_t end, int64_t n,
                      int64_t size, void* out, Number to) {
  using Function = void (*)(const void*, const bool*, int64_t, int64_t, int64_t, int64_t, void*);
  static constexpr Function functions[3][3] = {{float32_to_float32, float32_to_float16, float32_to_bfloat16},
                                               {float16_to_float32, float16_to_float16, float16_to_bfloat16},
                                               {bfloat16_to_float32, bfloat16_to_float16, bfloat16_to_bfloat16}};
  functions[static_cast<int>(in)][static_cast<int>(to)](features, visible, begin, end, n, size, out);
}
