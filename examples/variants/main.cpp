// Chooses a variant by the processor, opens it and decodes once. This file is compiled for the oldest processor and includes nothing of
// quorum. An argument, or the environment variable QUORUM_VARIANT, forces a variant; --all runs each that the processor has and compares.
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "examples/variants/entry.hpp"
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace {

constexpr int kHeads = 4, kHeadDim = 64, kTokens = 4096, kDirections = 16;

struct Variant {
  std::string name;
  bool supported;  // by this processor
};

// Best first. The features are those of the flags in cmake/quorum_variants.cmake.
std::vector<Variant> variants() {
  bool avx512_vnni = false, avx512 = false, avx2 = false, sse2 = false, i8mm = false, dotprod = false, neon = false;
#if defined(__x86_64__)
  sse2 = true;
  avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  avx512_vnni = avx512 && __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__)
  neon = true;
  dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  i8mm = dotprod && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
#endif
  return {{"avx512_vnni", avx512_vnni}, {"avx512", avx512},        {"avx2", avx2}, {"sse2", sse2},
          {"neon_i8mm", i8mm},          {"neon_dotprod", dotprod}, {"neon", neon}, {"scalar", true}};
}

struct Data {
  std::vector<float> keys, values, queries;
};

// Tokens around 16 directions; each query points along one.
Data make_data() {
  std::mt19937 random(7);
  std::normal_distribution<float> gaussian;
  Data data;
  std::vector<float> directions(size_t(kDirections * kHeadDim));
  for (float& x : directions) x = gaussian(random);
  for (int token = 0; token < kTokens; ++token)
    for (int c = 0; c < kHeadDim; ++c) {
      data.keys.push_back(directions[size_t(token % kDirections * kHeadDim + c)] + 0.3f * gaussian(random));
      data.values.push_back(gaussian(random) + float(token % kDirections));
    }
  for (int i = 0; i < kHeads * kHeadDim; ++i) data.queries.push_back(directions[size_t(i)] + 0.3f * gaussian(random));
  return data;
}

// Dense attention in double precision, written apart from the library.
std::vector<double> reference(const Data& data) {
  std::vector<double> output;
  for (int head = 0; head < kHeads; ++head) {
    std::vector<double> sums(kHeadDim, 0.0);
    double total = 0.0;
    for (size_t token = 0; token < kTokens; ++token) {
      double score = 0.0;
      for (size_t c = 0; c < kHeadDim; ++c)
        score += double(data.queries[size_t(head) * kHeadDim + c]) * double(data.keys[token * kHeadDim + c]);
      const double weight = std::exp(score / 8.0);
      total += weight;
      for (size_t c = 0; c < kHeadDim; ++c) sums[c] += weight * double(data.values[token * kHeadDim + c]);
    }
    for (const double sum : sums) output.push_back(sum / total);
  }
  return output;
}

double relative_error(const std::vector<float>& got, const std::vector<double>& want) {
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(double(got[i]) - want[i], 2);
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

// Opens the module beside this program, decodes, compares. Adds the tokens read by all heads to `tokens`; false when anything is wrong.
bool run(const std::string& name, const std::filesystem::path& folder, int& tokens) {
  const std::string path = (folder / ("variants_entry_" + name + ".so")).string();
  void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) {
    std::fprintf(stderr, "variants: %s\n", dlerror());
    return false;
  }
  const auto instruction_set = reinterpret_cast<decltype(&variant_instruction_set)>(dlsym(module, "variant_instruction_set"));
  const auto decode = reinterpret_cast<decltype(&variant_decode)>(dlsym(module, "variant_decode"));
  if (instruction_set == nullptr || decode == nullptr || name != instruction_set()) {
    std::fprintf(stderr, "variants: %s is not the variant %s\n", path.c_str(), name.c_str());
    return false;
  }
  const Data data = make_data();
  std::vector<float> dense(kHeads * kHeadDim), sparse(dense.size());
  int32_t read[kHeads] = {};
  const int status = decode(data.keys.data(), data.values.data(), data.queries.data(), kTokens, dense.data(), sparse.data(), read);
  const std::vector<double> want = reference(data);
  const double dense_error = relative_error(dense, want), sparse_error = relative_error(sparse, want);
  for (const int32_t count : read) tokens += count;
  std::printf("%-12s dense error %.1e, sparse error %.1e, tokens read %d of %d\n", name.c_str(), dense_error, sparse_error, tokens,
              kHeads * kTokens);
  return status == 0 && dense_error < 1e-5 && sparse_error < 0.1 && tokens > 0 && tokens < kHeads * kTokens / 2;
}

bool run_all(const std::filesystem::path& folder) {
  int first = 0;
  for (const Variant& variant : variants()) {
    if (!variant.supported) continue;
    int tokens = 0;
    if (!run(variant.name, folder, tokens)) return false;
    if (first == 0) first = tokens;
    // The same rules with another order of additions: the clusters chosen differ a little.
    if (std::abs(tokens - first) > first / 5) {
      std::fprintf(stderr, "variants: %s reads %d tokens, the first one %d\n", variant.name.c_str(), tokens, first);
      return false;
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const auto folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  const char* wish = argc > 1 ? argv[1] : std::getenv("QUORUM_VARIANT");
  const std::string wanted = wish != nullptr ? wish : "";
  if (wanted == "--all") return run_all(folder) ? 0 : 1;
  std::string names;
  for (const Variant& variant : variants()) {
    names += " " + variant.name;
    if (!wanted.empty() && variant.name != wanted) continue;
    if (!variant.supported) {
      if (wanted.empty()) continue;
      std::fprintf(stderr, "variants: this processor does not support the variant '%s'\n", wanted.c_str());
      return 2;
    }
    int tokens = 0;
    return run(variant.name, folder, tokens) ? 0 : 1;
  }
  std::fprintf(stderr, "variants: unknown variant '%s'; the variants are:%s\n", wanted.c_str(), names.c_str());
  return 2;
}
