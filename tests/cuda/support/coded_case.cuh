// A StepCase whose rows choose single tokens by code, stage by stage, and what the stages should leave, in double precision from the host's
// index and the int8 queries of the device (algorithm.md section 7). Written independently of both backends.
#pragma once

#include <numeric>

#include "quorum/core/coded_rest.hpp"
#include "quorum/core/token_order.hpp"
#include "quorum/cuda/score_clusters.cuh"
#include "quorum/cuda/select_coded_tokens.cuh"
#include "tests/cuda/support/step_case.cuh"

namespace quorum::test {

// One row after score_clusters() and scan_candidates(): what they left, on the host.
struct CodedRow {
  cuda::RowPlan plan;
  std::vector<float> log_weight, tail_weight;  // [slots][group]
  std::vector<uint16_t> cluster_key, token_bucket;
  std::vector<unsigned long long> histogram;  // [group + 1][kNumKeyBuckets]
  std::vector<int8_t> quantised;              // [16][head_dim]
  std::vector<cuda::QueryConstants> constants;
};

class CodedCase {
 public:
  CodedCase(const HostCase& on_host, const DecodeOptions& options, int num_processors = 3)
      : host(on_host), device_case(on_host), step(on_host, device_case, options, small_device(num_processors)) {
    cuda::StepParams& p = params();
    p.by_tokens = true;
    p.candidate_coverage = candidate_coverage(options);
    p.scan_tiles = step.device().scan_tiles(p.num_rows(), p.max_slots);
    p.widens = options.certificate.enabled && options.certificate.policy != MissPolicy::accept;
    p.num_rounds = 3;
    step.lay_out();
    check(cuda::prepare_score_clusters(p.shape));
    check(cuda::prepare_select_coded_tokens(p.group, p.max_slots, p.select_blocks));
  }
  cuda::StepParams& params() { return step.params; }
  const cuda::StepParams& params() const { return step.params; }
  void scan() {
    check(cuda::score_clusters(params(), nullptr));
    check(cuda::scan_candidates(params(), nullptr));
    check(cudaDeviceSynchronize());
  }
  void select(int round = 0) {
    params().round = round;
    check(cuda::select_coded_tokens(params(), nullptr));
    check(cudaDeviceSynchronize());
  }

  // The index of a row's KV head on the host.
  const ClusterHeadView& head(int row) const { return host.index(params().sequence_of(row)).heads[params().kv_head_of(row)]; }
  int num_clusters(int row) const { return head(row).num_cluster_slots(); }
  CodedRow read(int row) const {
    const cuda::StepParams& p = params();
    const cuda::StepWorkspace& w = p.workspace;
    const size_t slots = size_t(num_clusters(row)), group = size_t(p.group);
    const int64_t at = int64_t(row) * p.max_slots;
    CodedRow out;
    out.plan = step.plans()[size_t(row)];
    out.log_weight = download(w.log_weight + at * p.group, slots * group);
    out.tail_weight = download(w.tail_weight + at * p.group, slots * group);
    out.cluster_key = download(w.cluster_key + at, slots);
    out.token_bucket = download(w.token_bucket + int64_t(row) * p.max_code_blocks() * kCodeBlock, size_t(p.max_code_blocks() * kCodeBlock));
    out.histogram = download(w.token_histogram + int64_t(row) * (p.group + 1) * kNumKeyBuckets, (group + 1) * kNumKeyBuckets);
    out.quantised = download(w.quantised + int64_t(row) * kMaxGroupSize * p.shape.head_dim, size_t(kMaxGroupSize * p.shape.head_dim));
    out.constants = download(w.constants + row * kMaxGroupSize, kMaxGroupSize);
    return out;
  }

  // First code block of a cluster, counted through all segments, as they lie on the device.
  int first_block(int row, int cluster) const {
    int block = 0;
    for (int j = 0; j < cluster; ++j) block += num_code_blocks(cluster_at(head(row), j).size());
    return block;
  }
  // Sum of +-q' in steps over the bits of a token's code: the scan's integer, bit by bit.
  int sign_dot(int row, int cluster, int token, const int8_t* quantised) const {
    const ClusterRef ref = cluster_at(head(row), cluster);
    const int d = params().shape.head_dim;
    const uint8_t* codes = ref.segment->codes + (ref.segment->code_indptr[ref.local] + token / kCodeBlock) * code_block_bytes(d);
    int sum = 0;
    for (int c = 0; c < d; ++c) {
      const CodeBit bit = code_bit(c, token % kCodeBlock);
      sum += (codes[bit.byte] >> bit.shift & 1) != 0 ? quantised[c] : -quantised[c];
    }
    return sum;
  }
  // Half the variance beyond which a cluster's tokens cannot realise it (algorithm.md section 7).
  static double limited(double half) { return half <= 3.0 ? half : 2.0 * std::sqrt(3.0 * half) - 3.0; }
  static double capped(double score, double cap) { return cap > 0.0 ? cap * std::tanh(score / cap) : score; }

  // Coded weight of a token as a share of the head's total.
  double share(int row, const CodedRow& r, int cluster, int token, int g) const {
    const ClusterRef ref = cluster_at(head(row), cluster);
    const cuda::QueryConstants& q = r.constants[size_t(g)];
    const double second =
        params().options.variance == VarianceModel::none ? 0.0 : limited(double(q.half_variance) * double(ref.segment->spread[ref.local]));
    const f16 scale = ref.segment->code_scale[(ref.segment->code_indptr[ref.local] + token / kCodeBlock) * kCodeBlock + token % kCodeBlock];
    const double dot = sign_dot(row, cluster, token, r.quantised.data() + g * params().shape.head_dim) * double(q.step);
    const double score = double(r.log_weight[size_t(cluster * params().group + g)]) - second + 1.15 * double(to_float(scale)) * dot;
    const double log_share = capped(score, double(params().shape.logit_softcap)) - double(r.plan.log_total[g]);
    return std::exp(std::min(log_share, 15.8 * std::log(2.0)));
  }
  // Factor from a coded to an expected weight.
  double with_lost_variance(int row, const CodedRow& r, int cluster, int g) const {
    if (params().options.variance == VarianceModel::none) return 1.0;
    const ClusterRef ref = cluster_at(head(row), cluster);
    const double lost = 0.5 * (1.0 - 2.0 / std::acos(-1.0)) * double(r.constants[size_t(g)].square) / params().shape.head_dim;
    return std::exp(limited(lost * double(ref.segment->spread[ref.local])));
  }

  const HostCase& host;
  DeviceCase device_case;
  StepCase step;

 private:
  static void check(cudaError_t status) { cuda::check(status, "CodedCase", "a launch"); }
};

}  // namespace quorum::test
