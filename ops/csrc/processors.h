// One build serves old and new processors: a function marked so is compiled once for each of these, and the best is
// chosen when the library is loaded. `flatten`: what it calls must be compiled for that processor too, and a large
// function would otherwise be compiled once, for the oldest, and called.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__x86_64__) && defined(__linux__)
#define FOR_EVERY_PROCESSOR __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif
