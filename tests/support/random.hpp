// Random test data that is the same on every platform: the standard's distributions are not.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace quorum::test {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  double uniform() { return double(engine_() >> 11) * 0x1p-53; }  // [0, 1)
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  int below(int count) { return int(uniform() * count); }
  // Box-Muller, one of the pair.
  double gaussian() { return std::sqrt(-2.0 * std::log(1.0 - uniform())) * std::cos(6.283185307179586 * uniform()); }
  uint64_t bits() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

inline std::vector<float> gaussian_floats(int64_t count, uint64_t seed, float scale = 1.0f) {
  Random random(seed);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = scale * float(random.gaussian());
  return out;
}

// Keys, values and queries with something to find: keys and values lie around common centres, and every query looks along a few of
// the centres' keys. Plain Gaussian keys have no sparsity.
struct ClusteredData {
  std::vector<float> keys, values;  // [num_tokens][num_kv_heads][head_dim]
  std::vector<float> queries;       // [num_queries][num_qo_heads][head_dim]
};

struct ClusteredSpec {
  int num_tokens = 0;
  int num_kv_heads = 1;
  int num_qo_heads = 1;
  int head_dim = 64;
  int num_queries = 1;
  uint64_t seed = 1;
  int tokens_per_centre = 24;
  float key_noise = 0.3f;    // standard deviation around a centre, whose coordinates have standard deviation 1
  float value_noise = 0.5f;  // likewise
  float sharpness = 3.0f;    // standard deviation of the scores of centres, with sm_scale = 1 / sqrt(head_dim)
};

inline ClusteredData clustered_data(const ClusteredSpec& spec) {
  Random random(spec.seed);
  const size_t d = size_t(spec.head_dim), heads = size_t(spec.num_kv_heads);
  const int num_centres = spec.num_tokens / spec.tokens_per_centre + 1;
  std::vector<float> centre_keys(size_t(num_centres) * heads * d), centre_values(centre_keys.size());
  for (float& x : centre_keys) x = float(random.gaussian());
  for (float& x : centre_values) x = float(random.gaussian());
  ClusteredData out;
  for (int i = 0; i < spec.num_tokens; ++i) {
    const size_t centre = size_t(random.below(num_centres)) * heads * d;
    for (size_t c = 0; c < heads * d; ++c) {
      out.keys.push_back(centre_keys[centre + c] + spec.key_noise * float(random.gaussian()));
      out.values.push_back(centre_values[centre + c] + spec.value_noise * float(random.gaussian()));
    }
  }
  const int group = spec.num_qo_heads / spec.num_kv_heads;
  for (int q = 0; q < spec.num_queries; ++q)
    for (int h = 0; h < spec.num_qo_heads; ++h) {
      const size_t centre = size_t(random.below(num_centres)) * heads * d + size_t(h / group) * d;
      for (size_t c = 0; c < d; ++c)
        out.queries.push_back(spec.sharpness * (0.3f * centre_keys[centre + c] + 0.954f * float(random.gaussian())));
    }
  return out;
}

}  // namespace quorum::test
