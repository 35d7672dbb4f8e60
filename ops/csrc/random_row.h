// Random lanes of a row on the CPU: the hash of a group of four columns is computed once.
#pragma once

#include <cstdint>
#include <cstring>

#include "dropout.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a group's four lanes are read from memory in order");

// Numbers of 16 bits that random_lanes writes for h columns.
inline int64_t lanes_for(int64_t h) { return (h + 3) / 4 * 4; }

// lanes[c] for the columns c of a row, up to lanes_for(h).
inline void random_lanes(uint64_t row, int64_t h, uint16_t* __restrict__ lanes) {
  const int64_t groups = (h + 3) / 4;
  for (int64_t group = 0; group < groups; ++group) {
    const uint64_t bits = group_bits(row, group);
    memcpy(lanes + 4 * group, &bits, sizeof bits);
  }
}
