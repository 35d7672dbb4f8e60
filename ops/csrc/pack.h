// W contiguous numbers, loaded or stored by one instruction if they have 16 bytes and by several if they have more.
#pragma once

#include <cstdint>

template <typename T, int W>
struct alignas(sizeof(T) * W <= 16 ? sizeof(T) * W : 16) Pack {
  T values[W];
};

inline bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }
