// What the torch binding calls: plain pointers, no torch.
#pragma once

#include <cstdint>

#include "number.h"

// boxes (B, n, 4), seeds, valid (null: all valid) and out (B, n), of which images begin to end are done.
void mask_overlapping_cpu(const float* boxes, const bool* seeds, const bool* valid, int64_t begin, int64_t end,
                          int64_t n, float threshold, bool* out);

// The same for all B images on the GPU, in `stream` (a cudaStream_t). Returns a cudaError_t, 0 for none.
extern "C" int mask_overlapping_cuda(const float* boxes, const bool* seeds, const bool* valid, int64_t batch,
                                     int64_t n, float threshold, bool* out, void* stream);

// features (B, n, size) of type `in`, visible (B, n), out (B, n + 1, size) of type `to`: images begin to end.
void mask_regions_cpu(const void* features, Number in, const bool* visible, int64_t begin, int64_t end, int64_t n,
                      int64_t size, void* out, Number to);

// The same for all B images on the GPU; any alignment, the kernel is faster where size and addresses have 16 bytes.
extern "C" int mask_regions_cuda(const void* features, int in, const bool* visible, int64_t batch, int64_t n,
                                 int64_t size, void* out, int to, void* stream);
