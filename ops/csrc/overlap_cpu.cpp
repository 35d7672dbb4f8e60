// The CPU loop of overlap masking, without torch: one image at a time, contiguous arrays.

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "overlap.h"
#include "processors.h"

namespace {

// hit[i] |= box i overlaps the seed. The coordinates are in separate arrays, so that the loop can be vectorised.
FOR_EVERY_PROCESSOR
void add_overlapping(const float* __restrict__ x1, const float* __restrict__ y1, const float* __restrict__ x2,
                     const float* __restrict__ y2, const float* __restrict__ area, int64_t n, int64_t seed,
                     float threshold, int32_t* __restrict__ hit) {
  const float sx1 = x1[seed], sy1 = y1[seed], sx2 = x2[seed], sy2 = y2[seed], seed_area = area[seed];
  for (int64_t i = 0; i < n; ++i) {
    hit[i] |= boxes_overlap(sx1, sy1, sx2, sy2, seed_area, x1[i], y1[i], x2[i], y2[i], area[i], threshold);
  }
}

}  // namespace

void mask_overlapping_cpu(const float* boxes, const bool* seeds, const bool* valid, int64_t begin, int64_t end,
                          int64_t n, float threshold, bool* out) {
  std::vector<float> columns(5 * n);
  std::vector<int32_t> hit(n);
  float *x1 = columns.data(), *y1 = x1 + n, *x2 = y1 + n, *y2 = x2 + n, *area = y2 + n;
  for (int64_t image = begin; image < end; ++image) {
    const float* box = boxes + image * n * 4;
    const bool* is_seed = seeds + image * n;
    const bool* is_valid = valid ? valid + image * n : nullptr;
    for (int64_t i = 0; i < n; ++i) {
      x1[i] = box[4 * i];
      y1[i] = box[4 * i + 1];
      x2[i] = box[4 * i + 2];
      y2[i] = box[4 * i + 3];
      area[i] = box_area(x1[i], y1[i], x2[i], y2[i]);
      hit[i] = is_seed[i];
    }
    for (int64_t i = 0; i < n; ++i) {
      if (is_seed[i] && (!is_valid || is_valid[i])) add_overlapping(x1, y1, x2, y2, area, n, i, threshold, hit.data());
    }
    for (int64_t i = 0; i < n; ++i) out[image * n + i] = hit[i] && (!is_valid || is_valid[i]);
  }
}
