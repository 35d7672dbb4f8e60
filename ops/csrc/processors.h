// Function multiversioning: a marked function is compiled for each of these processors, and the best version is
// selected when the library is loaded. `flatten` inlines its callees, because they must be compiled for that processor
// too; otherwise a large function would be compiled once, for the oldest one.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__x86_64__) && defined(__linux__)
#define FOR_EVERY_PROCESSOR __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif
