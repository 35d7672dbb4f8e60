// Whether two boxes overlap: the definition shared by the CPU loop and the CUDA kernel.
//
// Both must be bit-identical, so everything is float32, without divisions, and the compilers must not fuse
// multiplications and additions (-ffp-contract=off, -fmad=false).
#pragma once

#include "host_device.h"

// The area of a box; NaN if a coordinate is.
HOST_DEVICE float box_area(float x1, float y1, float x2, float y2) { return (x2 - x1) * (y2 - y1); }

// Whether the intersection is positive and at least `threshold` of the union. A NaN in either box makes the union
// NaN, and the comparison false. Without branches, so that compilers can vectorise a loop of it.
HOST_DEVICE bool boxes_overlap(float ax1, float ay1, float ax2, float ay2, float a_area, float bx1, float by1,
                               float bx2, float by2, float b_area, float threshold) {
  const float left = ax1 > bx1 ? ax1 : bx1;
  const float top = ay1 > by1 ? ay1 : by1;
  const float right = ax2 < bx2 ? ax2 : bx2;
  const float bottom = ay2 < by2 ? ay2 : by2;
  const float width = right - left;
  const float height = bottom - top;
  const float shared = width * height;
  const float together = (a_area + b_area) - shared;
  return (width > 0) & (height > 0) & (shared > 0) & (shared >= threshold * together);
}
