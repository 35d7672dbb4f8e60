// The CPU loops of dropout and attention dropout, without torch. The random numbers of a row are computed first and
// then used: compilers vectorise these two loops, but not one loop over both 64-bit and 16-bit numbers.

#include <cstdint>
#include <cstring>
#include <vector>

#include "dropout.h"
#include "kernels.h"
#include "number.h"
#include "processors.h"
#include "random_row.h"

namespace {

template <typename T>
inline void drop_rows(const T* x, const int64_t* keys, int64_t site, Rate rate, int64_t begin, int64_t end, int64_t h,
                      T* out) {
  using Value = decltype(widen(T{}));
  const Value scale = static_cast<Value>(rate.scale);
  std::vector<uint16_t> lanes(lanes_for(h));
  for (int64_t row = begin; row < end; ++row) {
    random_lanes(row_site(keys[row], site), h, lanes.data());
    const T* __restrict__ from = x + row * h;
    T* __restrict__ to = out + row * h;
    const uint16_t* __restrict__ lane = lanes.data();
    for (int64_t i = 0; i < h; ++i) {
      const Value value = widen(from[i]) * scale;
      narrow(lane[i] < rate.threshold ? Value(0) : value, to[i]);
    }
  }
}

template <typename T>
inline void drop_attention(const T* probs, const int64_t* query_keys, const int64_t* key_keys, int64_t site, Rate rate,
                           int64_t begin, int64_t end, int64_t heads, int64_t queries, int64_t keys, T* out) {
  using Value = decltype(widen(T{}));
  const Value scale = static_cast<Value>(rate.scale);
  const int32_t threshold = static_cast<int32_t>(rate.threshold);
  std::vector<int32_t> bits(keys);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t query = row % queries, head = row / queries % heads, image = row / queries / heads;
    const uint64_t start = row_site(query_keys[image * queries + query], site * heads + head);
    const int64_t* __restrict__ key = key_keys + image * keys;
    int32_t* __restrict__ bit = bits.data();
    for (int64_t i = 0; i < keys; ++i) bit[i] = static_cast<int32_t>(pair_bits(start, key[i]));
    const T* __restrict__ from = probs + row * keys;
    T* __restrict__ to = out + row * keys;
    for (int64_t i = 0; i < keys; ++i) {
      const Value value = widen(from[i]) * scale;
      narrow(bit[i] < threshold ? Value(0) : value, to[i]);
    }
  }
}

// target_clones does not apply to templates: one plain function for each type.
#define DROPOUT(T)                                                                                                   \
  FOR_EVERY_PROCESSOR void drop_##T(const void* x, const int64_t* keys, int64_t site, Rate rate, int64_t begin,      \
                                    int64_t end, int64_t h, void* out) {                                             \
    drop_rows(static_cast<const T*>(x), keys, site, rate, begin, end, h, static_cast<T*>(out));                      \
  }                                                                                                                  \
  FOR_EVERY_PROCESSOR void attend_##T(const void* probs, const int64_t* query_keys, const int64_t* key_keys,         \
                                      int64_t site, Rate rate, int64_t begin, int64_t end, int64_t heads,            \
                                      int64_t queries, int64_t keys, void* out) {                                    \
    drop_attention(static_cast<const T*>(probs), query_keys, key_keys, site, rate, begin, end, heads, queries, keys, \
                   static_cast<T*>(out));                                                                            \
  }
DROPOUT(float)
DROPOUT(Float16)
DROPOUT(BFloat16)
DROPOUT(double)

}  // namespace

void dropout_cpu(const void* x, Number number, const int64_t* keys, int64_t site, double p, int64_t begin, int64_t end,
                 int64_t h, void* out) {
  using Function = void (*)(const void*, const int64_t*, int64_t, Rate, int64_t, int64_t, int64_t, void*);
  static constexpr Function functions[4] = {drop_float, drop_Float16, drop_BFloat16, drop_double};
  functions[static_cast<int>(number)](x, keys, site, rate_of(p, 16), begin, end, h, out);
}

void attention_dropout_cpu(const void* probs, Number number, const int64_t* query_keys, const int64_t* key_keys,
                           int64_t site, double p, int64_t begin, int64_t end, int64_t heads, int64_t queries,
                           int64_t keys, void* out) {
  using Function = void (*)(const void*, const int64_t*, const int64_t*, int64_t, Rate, int64_t, int64_t, int64_t,
                            int64_t, int64_t, void*);
  static constexpr Function functions[4] = {attend_float, attend_Float16, attend_BFloat16, attend_double};
  functions[static_cast<int>(number)](probs, query_keys, key_keys, site, rate_of(p, 24), begin, end, heads, queries,
                                      keys, out);
}
