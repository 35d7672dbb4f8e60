// The functions called by the torch binding, with plain pointers and without torch.
#pragma once

#include <cstdint>

#include "number.h"

// boxes (B, n, 4), seeds, valid (null: all valid) and out (B, n); computes images begin to end.
void mask_overlapping_cpu(const float* boxes, const bool* seeds, const bool* valid, int64_t begin, int64_t end,
                          int64_t n, float threshold, bool* out);

// The same for all B images on the GPU, in `stream` (a cudaStream_t). Returns a cudaError_t, 0 for success.
extern "C" int mask_overlapping_cuda(const float* boxes, const bool* seeds, const bool* valid, int64_t batch,
                                     int64_t n, float threshold, bool* out, void* stream);

// features (B, n, size) of type `in`, visible (B, n), out (B, n + 1, size) of type `to`: images begin to end.
void mask_regions_cpu(const void* features, Number in, const bool* visible, int64_t begin, int64_t end, int64_t n,
                      int64_t size, void* out, Number to);

// The same for all B images on the GPU, with any alignment; faster if row size and addresses are multiples of 16 bytes.
extern "C" int mask_regions_cuda(const void* features, int in, const bool* visible, int64_t batch, int64_t n,
                                 int64_t size, void* out, int to, void* stream);

// out = dropout(x): x and out (n, h) of type `number`, keys (n); rows begin to end.
void dropout_cpu(const void* x, Number number, const int64_t* keys, int64_t site, double p, int64_t begin, int64_t end,
                 int64_t h, void* out);

// The same for all n rows on the GPU.
extern "C" int dropout_cuda(const void* x, int number, const int64_t* keys, int64_t site, double p, int64_t n,
                            int64_t h, void* out, void* stream);

// probs and out (B, heads, L, M) of type `number`, query_keys (B, L), key_keys (B, M): of the B * heads * L rows of M
// probabilities, begin to end.
void attention_dropout_cpu(const void* probs, Number number, const int64_t* query_keys, const int64_t* key_keys,
                           int64_t site, double p, int64_t begin, int64_t end, int64_t heads, int64_t queries,
                           int64_t keys, void* out);

// The same for all rows on the GPU.
extern "C" int attention_dropout_cuda(const void* probs, int number, const int64_t* query_keys,
                                      const int64_t* key_keys, int64_t site, double p, int64_t batch, int64_t heads,
                                      int64_t queries, int64_t keys, void* out, void* stream);

// Arguments of LayerNorm(dropout(x) + residual), forward and backward. Statistics, weight, bias and their gradients are
// float32, or float64 if x is; then residual, output and gradients are float64 too.
struct LayerNorm {
  int64_t n, h;
  const void* x;  // (n, h)
  Number x_type;
  const void* residual;  // (n, h), null for none
  Number residual_type;  // x_type without a residual
  const void* weight;    // (h)
  const int64_t* keys;   // (n), null if p is 0
  int64_t site;
  double p;
};

// out (n, h) of type `out_type`; mean and rstd (n): rows begin to end.
void layer_norm_cpu(const LayerNorm& of, const void* bias, double eps, int64_t begin, int64_t end, void* out,
                    Number out_type, void* mean, void* rstd);

// dx and dresidual (null without a residual) for rows begin to end, and these rows' sums for weight and bias in
// dweight and dbias (h).
void layer_norm_backward_cpu(const LayerNorm& of, const void* gradient, Number gradient_type, const void* mean,
                             const void* rstd, int64_t begin, int64_t end, void* dx, void* dresidual, void* dweight,
                             void* dbias);

// The same for all n rows on the GPU. `partial` has room for (layer_norm_partials_cuda, 2, h) numbers.
extern "C" int layer_norm_cuda(const LayerNorm* of, const void* bias, double eps, void* out, int out_type, void* mean,
                               void* rstd, void* stream);
extern "C" int64_t layer_norm_partials_cuda(int64_t n, int64_t h);
extern "C" int layer_norm_backward_cuda(const LayerNorm* of, const void* gradient, int gradient_type, const void* mean,
                                        const void* rstd, void* dx, void* dresidual, void* partial, int64_t partials,
                                        void* dweight, void* dbias, void* stream);
