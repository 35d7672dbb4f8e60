// What the torch binding calls: plain pointers, no torch.
#pragma once

#include <cstdint>

// boxes (B, n, 4), seeds, valid (null: all valid) and out (B, n), of which images begin to end are done.
void mask_overlapping_cpu(const float* boxes, const bool* seeds, const bool* valid, int64_t begin, int64_t end,
                          int64_t n, float threshold, bool* out);

// The same for all B images on the GPU, in `stream` (a cudaStream_t). Returns a cudaError_t, 0 for none.
extern "C" int mask_overlapping_cuda(const float* boxes, const bool* seeds, const bool* valid, int64_t batch,
                                     int64_t n, float threshold, bool* out, void* stream);
