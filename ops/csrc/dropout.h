// Dropout as a pure function of (row key, site, column): the one definition that the CPU loops and the CUDA kernels
// share. No generator state, so the mask is the same for any number of ranks, accumulation steps, threads or replays.
//
// All arithmetic is on unsigned 64-bit integers and wraps around. `mix` is splitmix64's finaliser (Steele, Lea and
// Flood, 2014), as in shards/common/counter_rng.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

HOST_DEVICE uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// The random number of a row for a dropout site. For attention, `site` is site * heads + head.
HOST_DEVICE uint64_t row_site(int64_t key, int64_t site) {
  return mix(static_cast<uint64_t>(key) + (static_cast<uint64_t>(site) + 1) * kGolden);
}

// Four 16-bit lanes for columns 4 * group to 4 * group + 3, the first in the lowest bits.
HOST_DEVICE uint64_t group_bits(uint64_t row, int64_t group) {
  return mix(row + (static_cast<uint64_t>(group) + 1) * kGolden);
}
HOST_DEVICE uint32_t lane_bits(uint64_t bits, int column) {
  return static_cast<uint32_t>(bits >> (16 * (column & 3))) & 0xffff;
}

// 24 bits for the attention probability of a query row, given by its row_site, and a key row.
HOST_DEVICE uint32_t pair_bits(uint64_t query, int64_t key) {
  return static_cast<uint32_t>(mix(query + static_cast<uint64_t>(key)) >> 40);
}

// p in random bits: a value is dropped if its bits are below `threshold`, otherwise multiplied by `scale`.
struct Rate {
  uint32_t threshold;
  double scale;
};
inline Rate rate_of(double p, int bits) {
  const double range = static_cast<double>(1 << bits);
  const double threshold = std::nearbyint(p * range);  // ties to even, like Python's round
  return {static_cast<uint32_t>(threshold), range / (range - threshold)};
}
