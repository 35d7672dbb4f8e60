// The types of numbers in memory, and conversions to and from float32 (float64 stays float64). Rounding is to nearest,
// ties to even, bit-identical on the CPU and the GPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

enum class Number : int { kFloat32, kFloat16, kBFloat16, kFloat64 };

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

HOST_DEVICE float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
HOST_DEVICE uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

HOST_DEVICE double widen(double value) { return value; }
HOST_DEVICE float widen(float value) { return value; }
HOST_DEVICE float widen(BFloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }
// Exponent and fraction shifted to the position in float32 are 2^112 too small (subnormal numbers too); an infinity or
// a NaN keeps an exponent of all ones. Signed comparisons and no branches, so that it can be vectorised.
HOST_DEVICE float widen(Float16 value) {
  const int32_t size = static_cast<int32_t>(value.bits & 0x7fff) << 13;
  const int32_t ones = size >= 0x0f800000 ? 0x7f800000 : 0;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  return from_bits(to_bits(from_bits(size) * 0x1p112f) | static_cast<uint32_t>(ones) | sign);
}

HOST_DEVICE void narrow(double value, double& out) { out = value; }
HOST_DEVICE void narrow(float value, float& out) { out = value; }
HOST_DEVICE void narrow(float value, BFloat16& out) {
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}
// Numbers too small for a normal float16 are rounded by adding a power of two whose last bit is the smallest float16.
HOST_DEVICE void narrow(float value, Float16& out) {
  const int32_t bits = static_cast<int32_t>(to_bits(value)), size = bits & 0x7fffffff;
  const int32_t normal = (size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13;
  const int32_t small = static_cast<int32_t>(to_bits(from_bits(size) + 0.5f)) - 0x3f000000;
  const int32_t finite = size < 0x38800000 ? small : size >= 0x477ff000 ? 0x7c00 : normal;
  out.bits = static_cast<uint16_t>((bits >> 16 & 0x8000) | (size > 0x7f800000 ? 0x7e00 : finite));
}
