// One kernel on arrays from standard input, the result to standard output; types are those of Number in number.h:
//   overlap BATCH N THRESHOLD
//   regions BATCH N SIZE IN TO
//   dropout N H TYPE SITE P
//   attention BATCH HEADS QUERIES KEYS TYPE SITE P
//   layer_norm N H X_TYPE RESIDUAL_TYPE OUT_TYPE RESIDUAL SITE P: out, mean, rstd, dx, dresidual, dweight and dbias

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels.h"

using Bytes = std::vector<char>;

size_t size_of(int type) { return type == 0 ? 4 : type == 3 ? 8 : 2; }

template <typename T = char>
std::vector<T> read(size_t count) {
  std::vector<T> values(count);
  if (fread(values.data(), sizeof(T), count, stdin) != count) exit(3);
  return values;
}
void write(const Bytes& bytes) { fwrite(bytes.data(), 1, bytes.size(), stdout); }
const bool* flags(const Bytes& bytes) { return reinterpret_cast<const bool*>(bytes.data()); }

void overlap(int64_t batch, int64_t n, float threshold) {
  const auto boxes = read<float>(batch * n * 4);
  const auto seeds = read(batch * n), valid = read(batch * n);
  Bytes out(batch * n);
  mask_overlapping_cuda(boxes.data(), flags(seeds), flags(valid), batch, n, threshold,
                        reinterpret_cast<bool*>(out.data()), nullptr);
  write(out);
}

void regions(int64_t batch, int64_t n, int64_t size, int in, int to) {
  const auto features = read(batch * n * size * size_of(in));
  const auto visible = read(batch * n);
  Bytes out(batch * (n + 1) * size * size_of(to));
  mask_regions_cuda(features.data(), in, flags(visible), batch, n, size, out.data(), to, nullptr);
  write(out);
}

void dropout(int64_t n, int64_t h, int type, int64_t site, double p) {
  const auto x = read(n * h * size_of(type));
  const auto keys = read<int64_t>(n);
  Bytes out(x.size());
  dropout_cuda(x.data(), type, keys.data(), site, p, n, h, out.data(), nullptr);
  write(out);
}

void attention(int64_t batch, int64_t heads, int64_t queries, int64_t keys, int type, int64_t site, double p) {
  const auto probs = read(batch * heads * queries * keys * size_of(type));
  const auto query_keys = read<int64_t>(batch * queries), key_keys = read<int64_t>(batch * keys);
  Bytes out(probs.size());
  attention_dropout_cuda(probs.data(), type, query_keys.data(), key_keys.data(), site, p, batch, heads, queries, keys,
                         out.data(), nullptr);
  write(out);
}

void layer_norm(int64_t n, int64_t h, int x_type, int residual_type, int out_type, bool residual, int64_t site,
                double p) {
  const size_t one = size_of(x_type == 3 ? 3 : 0);
  const auto x = read(n * h * size_of(x_type)), added = read(n * h * size_of(residual_type));
  const auto weight = read(h * one), bias = read(h * one);
  const auto keys = read<int64_t>(n);
  const auto gradient = read(n * h * size_of(out_type));
  const LayerNorm of{n, h, x.data(), static_cast<Number>(x_type), residual ? added.data() : nullptr,
                     static_cast<Number>(residual_type), weight.data(), keys.data(), site, p};
  Bytes out(n * h * size_of(out_type)), mean(n * one), rstd(n * one), dx(x.size()), dresidual(added.size());
  layer_norm_cuda(&of, bias.data(), 1e-12, out.data(), out_type, mean.data(), rstd.data(), nullptr);
  const int64_t partials = layer_norm_partials_cuda(n, h);
  Bytes partial(partials * 2 * h * one), dweight(h * one), dbias(h * one);
  layer_norm_backward_cuda(&of, gradient.data(), out_type, mean.data(), rstd.data(), dx.data(),
                           residual ? dresidual.data() : nullptr, partial.data(), partials, dweight.data(),
                           dbias.data(), nullptr);
  for (const auto& bytes : {out, mean, rstd, dx, dresidual, dweight, dbias}) write(bytes);
}

int main(int count, char** words) {
  const std::string name = words[1];
  std::vector<double> v;
  for (int i = 2; i < count; ++i) v.push_back(std::stod(words[i]));
  if (name == "overlap") overlap(v[0], v[1], v[2]);
  if (name == "regions") regions(v[0], v[1], v[2], v[3], v[4]);
  if (name == "dropout") dropout(v[0], v[1], v[2], v[3], v[4]);
  if (name == "attention") attention(v[0], v[1], v[2], v[3], v[4], v[5], v[6]);
  if (name == "layer_norm") layer_norm(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]);
}
