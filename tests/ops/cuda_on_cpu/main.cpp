// overlap BATCH N THRESHOLD | regions BATCH N SIZE IN TO: arrays from standard input, the result to standard output.

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels.h"

template <typename T>
std::vector<T> read(size_t count) {
  std::vector<T> values(count);
  if (fread(values.data(), sizeof(T), count, stdin) != count) exit(3);
  return values;
}

int main(int, char** words) {
  const int64_t batch = atoi(words[2]), n = atoi(words[3]);
  if (std::string(words[1]) == "overlap") {
    const auto boxes = read<float>(batch * n * 4);
    const auto seeds = read<char>(batch * n), valid = read<char>(batch * n);
    std::vector<char> out(batch * n);
    mask_overlapping_cuda(boxes.data(), reinterpret_cast<const bool*>(seeds.data()),
                          reinterpret_cast<const bool*>(valid.data()), batch, n, std::stof(words[4]),
                          reinterpret_cast<bool*>(out.data()), nullptr);
    fwrite(out.data(), 1, out.size(), stdout);
    return 0;
  }
  const int64_t size = atoi(words[4]), in = atoi(words[5]), to = atoi(words[6]);
  const auto features = read<char>(batch * n * size * (in ? 2 : 4));
  const auto visible = read<char>(batch * n);
  std::vector<char> out(batch * (n + 1) * size * (to ? 2 : 4));
  mask_regions_cuda(features.data(), in, reinterpret_cast<const bool*>(visible.data()), batch, n, size, out.data(), to,
                    nullptr);
  fwrite(out.data(), 1, out.size(), stdout);
}
