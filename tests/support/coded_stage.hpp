// The stages of reading by residual codes, one after the other, and what they should find, in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "quorum/cpu/model_error.hpp"
#include "tests/support/stage.hpp"

namespace quorum::test {

// Sequences of one KV head to be read by codes.
inline BatchSpec coded_spec(int length, int group_size = 3, int head_dim = 64) {
  BatchSpec spec = coded_batch({length});
  spec.shape = {group_size, 1, head_dim, 0.0f};
  return spec;
}
// One whose sinks and window hold nearly all of the weight.
inline BatchSpec window_spec() {
  BatchSpec spec = coded_spec(600);
  spec.index.window_tokens = 560;
  spec.sharpness = 0.1f;
  return spec;
}

// A token of a candidate, by its place.
struct CodedToken {
  int candidate = 0;
  int scan_block = 0;
  int lane = 0;
  int token = 0;
};

class CodedStage : public Stage {
 public:
  DecodeOptions options;
  cpu::ReadState state;
  cpu::CodedState coded;
  cpu::ClusterWeights weights;
  bool finite = false;

  explicit CodedStage(const Batch& batch, int num_workers = 1, const DecodeOptions& wanted = {})
      : Stage(batch, 0, 0, num_workers), options(wanted), batch_(batch), num_workers_(num_workers) {}

  // Runs work(task, state, coded) on every worker, each with its own copies; the leader's are kept.
  template <class Work>
  void step(Work&& work) {
    run([&](const cpu::HeadTask& task) {
      cpu::ReadState own_state = state;
      cpu::CodedState own_coded = coded;
      work(task, own_state, own_coded);
      task.team.sync();
      if (!task.team.leads()) return;
      state = own_state;
      coded = own_coded;
    });
  }
  // Weighs clusters, chooses candidates and scans their codes.
  void scan() {
    step([&](const cpu::HeadTask& task, cpu::ReadState& own_state, cpu::CodedState& own_coded) {
      cpu::ClusterWeights own;
      bool own_finite = cpu::weigh_clusters(task, index(), head(), options.variance, true, own_state, own);
      if (own_finite) own_finite = cpu::weigh_candidates(task, head(), options, own, own_state, own_coded);
      own_coded.indexed_tokens = task.kv.num_tokens - own_state.num_always;
      task.team.sync();
      if (!task.team.leads()) return;
      finite = own_finite;
      weights = own;
    });
  }
  // Chooses tokens and, where that was done by code alone, reads their keys.
  void read() {
    step([&](const cpu::HeadTask& task, cpu::ReadState& own_state, cpu::CodedState& own_coded) {
      cpu::read_tokens(task, head(), options, own_coded, own_state);
      if (own_coded.pending == 0) return;
      double exact[kMaxGroupSize];
      cpu::read_listed(task, own_state, own_state.num_always + own_state.num_tokens - own_coded.pending, own_coded.pending, exact);
      for (int g = 0; g < num_heads(); ++g) own_state.read[g] += exact[g];
    });
  }

  int num_heads() const { return batch_.shape().group_size(); }
  int num_workers() const { return num_workers_; }
  ClusterRef candidate(int i) const { return cluster_at(head(), shared().cluster[i]); }
  std::vector<CodedToken> coded_tokens() const {
    std::vector<CodedToken> out;
    for (int i = 0; i < coded.candidates.clusters; ++i)
      for (int t = 0; t < candidate(i).num_tokens(); ++t)
        out.push_back({i, shared().first_block[i] + t / kCodeBlock, t % kCodeBlock, candidate(i).tokens()[t]});
    return out;
  }
  // Scale of a token's code.
  double code_scale(const CodedToken& at) const { return double(to_float(codes(at).scale[at.lane])); }
  // Weight of a token by its centroid's score and its code; what the tables may change of it, as a factor.
  double coded_weight(const CodedToken& at, int g) const {
    const ClusterRef cluster = candidate(at.candidate);
    const cpu::HeadRows rotated = worker(0).rotated;
    double dot = 0.0;
    for (int c = 0; c < batch_.shape().head_dim; ++c) {
      const CodeBit bit = code_bit(c, at.lane);
      dot += double(rotated.row(g)[c]) * ((codes(at).codes[bit.byte] >> bit.shift & 1) != 0 ? 1.0 : -1.0);
    }
    return std::exp(centroid_score(cluster, shared().cluster[at.candidate], g) + double(kCodeGain) * code_scale(at) * dot);
  }
  double weight_tolerance(const CodedToken& at, int g) const {
    double largest = 0.0;
    for (int c = 0; c < batch_.shape().head_dim; c += 4) {
      double sum = 0.0;
      for (int i = 0; i < 4; ++i) sum += std::fabs(double(worker(0).rotated.row(g)[c + i]));
      largest = std::max(largest, sum);
    }
    return std::expm1(double(kCodeGain) * code_scale(at) * largest / 127.0 * batch_.shape().head_dim / 8.0) + 2e-5;
  }
  // Share of the total, as scanning has stored it.
  double stored_share(const CodedToken& at, int g) const {
    return double(to_float(shared().token_share[(int64_t(at.scan_block) * num_heads() + g) * kCodeBlock + at.lane]));
  }
  int stored_bucket(const CodedToken& at) const { return shared().token_bucket[int64_t(at.scan_block) * kCodeBlock + at.lane]; }
  double mass(int candidate, int g) const { return double(shared().coded_mass[int64_t(candidate) * num_heads() + g]); }
  double estimate(int cluster, int g) const {
    return double(shared().estimate[(int64_t(cluster / 16) * num_heads() + g) * 16 + cluster % 16]);
  }
  bool is_candidate(int cluster) const {
    const int32_t* begin = shared().cluster;
    return std::find(begin, begin + coded.candidates.clusters, cluster) != begin + coded.candidates.clusters;
  }
  std::vector<int> listed_tokens() const {
    std::vector<int> out(shared().tokens + state.num_always, shared().tokens + state.num_always + state.num_tokens);
    std::sort(out.begin(), out.end());
    return out;
  }
  double exact_weight(const std::vector<double>& scores, int token, int g) const {
    return std::exp(scores[size_t(token)] - double(state.reference[g]));
  }
  double accumulated(int g, int c) const {
    double sum = 0.0;
    for (int w = 0; w < num_workers_; ++w) sum += double(worker(w).accumulated.row(g)[c]);
    return sum;
  }

 private:
  cpu::ClusterCodes codes(const CodedToken& at) const {
    cpu::ClusterCodes codes = cpu::codes_of(candidate(at.candidate), code_block_bytes(batch_.shape().head_dim));
    const int block = at.scan_block - shared().first_block[at.candidate];
    return {codes.codes + block * code_block_bytes(batch_.shape().head_dim), codes.scale + block * kCodeBlock};
  }
  double centroid_score(ClusterRef cluster, int id, int g) const {
    const double log_weight = double(shared().log_weight[(int64_t(id / 16) * num_heads() + g) * 16 + id % 16]);
    const double second_order = double(limited_token_log_weight(0.0f, cluster.segment->spread[cluster.local], weights.half_variance[g]));
    return log_weight - second_order - double(state.reference[g]);
  }

  const Batch& batch_;
  int num_workers_;
};

}  // namespace quorum::test
