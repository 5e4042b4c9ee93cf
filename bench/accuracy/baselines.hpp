// Rules that know the true weights (oracle, best_clusters) or rank clusters (fixed, tactic, double_p, retroinfer).
#pragma once

#include <array>

#include "bench/accuracy/record.hpp"

namespace accuracy {

// Tokens with the largest true weight, no index counted. A group shares one set: by the largest share over its heads.
inline void run_oracle(const Study& study) {
  const HeadTruth& head = study.head;
  Matrix share = head.weights;
  share.array().colwise() /= head.total.cast<float>().array();
  const Matrix best = group_max(head, share);
  std::vector<std::vector<int>> order;
  for (int set = 0; set < head.num_queries; ++set) order.push_back(descending_order(best.row(set)));
  for (int tokens = 32; tokens <= 8192 && tokens < head.num_indexed(); tokens *= 2) {
    Mask kept = Mask::Zero(head.num_queries, head.num_indexed());
    for (int set = 0; set < head.num_queries; ++set) mark_first(kept, set, order[size_t(set)], tokens);
    study.add("oracle", budget(tokens), kept, study.no_index(kept.rows()));
  }
  order.clear();
  for (int row = 0; row < head.num_rows(); ++row) order.push_back(descending_order(head.weights.row(row)));
  for (const double p : {0.5, 0.8, 0.9, 0.95}) {  // each head its own set
    Mask kept = Mask::Zero(head.num_rows(), head.num_indexed());
    for (int row = 0; row < head.num_rows(); ++row) {
      double read = head.always[row];
      for (size_t i = 0; i < order[size_t(row)].size() && read < p * head.total[row]; ++i) {
        kept(row, order[size_t(row)][i]) = 1;
        read += double(head.weights(row, order[size_t(row)][i]));
      }
    }
    study.add("oracle_own", target(p), kept, study.no_index(kept.rows()));
  }
}

// Clusters of every row from the best score to the worst.
inline std::vector<std::vector<int>> score_orders(const Clusters& clusters) {
  std::vector<std::vector<int>> orders;
  for (Eigen::Index row = 0; row < clusters.scores.rows(); ++row) orders.push_back(descending_order(clusters.scores.row(row)));
  return orders;
}

namespace detail {

// Each row reads clusters in its order until it truly attains the target.
inline Mask stop_at_truth(const HeadTruth& head, const Clusters& clusters, const std::vector<std::vector<int>>& orders, double p) {
  Mask chosen = Mask::Zero(head.num_rows(), clusters.count);
  for (int row = 0; row < head.num_rows(); ++row) {
    double read = head.always[row];
    for (const int c : orders[size_t(row)]) {
      if (read >= p * head.total[row]) break;
      chosen(row, c) = 1;
      read += double(clusters.weights(row, c));
    }
  }
  return chosen;
}

}  // namespace detail

// Whole clusters with an all-knowing stop, joined over the group, no index counted. best_clusters reads them in the order of their scores:
// what is left of Tactic's cost if its fit were exact. oracle_clusters reads them by true weight per token.
inline void run_best_clusters(const Study& study, const Clusters& clusters) {
  const HeadTruth& head = study.head;
  const Matrix density = clusters.weights.array().rowwise() / clusters.size.transpose().cast<float>().array();
  std::vector<std::vector<int>> by_weight;
  for (int row = 0; row < head.num_rows(); ++row) by_weight.push_back(descending_order(density.row(row)));
  const auto by_score = score_orders(clusters);
  for (const double p : {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95}) {
    for (const bool best : {true, false}) {
      const Mask own = detail::stop_at_truth(head, clusters, best ? by_score : by_weight, p);
      const std::string rule = best ? "best_clusters" : "oracle_clusters";
      study.add(rule, target(p), tokens_of(clusters, group_union(head, own)), study.no_index(head.num_queries));
      if (p == 0.5 || p >= 0.8) study.add(rule + "_own", target(p), tokens_of(clusters, own), study.no_index(head.num_rows()));
    }
  }
}

// Bytes of scoring every f16 centroid.
inline double centroid_bytes(const Study& study, const Clusters& clusters) { return clusters.count * 2.0 * study.head.head_dim; }

// The best scored clusters of each head up to a number of tokens, joined over the group (ClusterKV, SqueezedAttention).
inline void run_fixed(const Study& study, const Clusters& clusters) {
  const auto orders = score_orders(clusters);
  for (int tokens = 32; tokens <= 8192 && tokens < study.head.num_indexed(); tokens *= 2) {
    Mask chosen = Mask::Zero(study.head.num_rows(), clusters.count);
    for (int row = 0; row < study.head.num_rows(); ++row) {
      double read = 0.0;
      for (int i = 0; i < clusters.count && read < tokens; ++i) {
        chosen(row, orders[size_t(row)][size_t(i)]) = 1;
        read += clusters.size[orders[size_t(row)][size_t(i)]];
      }
    }
    const Mask sets = group_union(study.head, chosen);
    study.add("fixed", budget(tokens), tokens_of(clusters, sets), Vector::Constant(sets.rows(), centroid_bytes(study, clusters)));
  }
}

namespace detail {

// Tactic's model of one row: weights of the tokens in the order of their clusters, y = slope / x + offset between two windows.
struct TacticFit {
  std::vector<double> cumulative;  // [num_indexed] modelled weight of the first tokens
  std::vector<int> cluster;        // [num_indexed] of the token at each place
};

inline TacticFit fit_tactic(const HeadTruth& head, const Clusters& clusters, int row, const std::vector<int>& order) {
  TacticFit fit;
  std::vector<double> weight;
  for (const int c : order) {
    for (int i = clusters.indptr[size_t(c)]; i < clusters.indptr[size_t(c) + 1]; ++i) {
      weight.push_back(double(head.weights(row, clusters.tokens[size_t(i)])));
      fit.cluster.push_back(c);
    }
  }
  const auto m = int(weight.size());
  const int width = std::max(16, int(0.005 * m)), first = int(0.1 * m), second = int(0.6 * m), exact = int(0.015 * m);
  const auto window_mean = [&](int begin) {
    return std::accumulate(weight.begin() + begin, weight.begin() + std::min(begin + width, m), 0.0) / width;
  };
  const double y1 = window_mean(first), y2 = window_mean(second), x1 = first + width / 2.0, x2 = second + width / 2.0;
  const double slope = (y1 - y2) / (1 / x1 - 1 / x2), offset = y1 - slope / x1;
  double sum = 0.0;
  for (int i = 0; i < m; ++i) {
    sum += i < exact ? weight[size_t(i)] : std::max(slope / (i + 1) + offset, 0.0);
    fit.cumulative.push_back(sum);
  }
  return fit;
}

}  // namespace detail

// Tactic: the number of tokens comes from the fitted distribution, whole clusters are read, joined over the group.
// Bytes: f16 centroids and the sampled keys of the fit (first 1.5 % of the tokens and two windows of 0.5 %).
inline void run_tactic(const Study& study, const Clusters& clusters) {
  const HeadTruth& head = study.head;
  const auto orders = score_orders(clusters);
  constexpr std::array kTargets = {0.3, 0.5, 0.7, 0.8, 0.9, 0.95};
  std::vector<Mask> chosen(kTargets.size(), Mask::Zero(head.num_rows(), clusters.count));
  for (int row = 0; row < head.num_rows(); ++row) {
    const detail::TacticFit fit = detail::fit_tactic(head, clusters, row, orders[size_t(row)]);
    const double always = head.always[row], whole = always + fit.cumulative.back();
    for (size_t t = 0; t < kTargets.size(); ++t) {
      if (always / whole >= kTargets[t]) continue;
      size_t place = 0;
      while (place + 1 < fit.cumulative.size() && (always + fit.cumulative[place]) / whole < kTargets[t]) ++place;
      for (const int c : orders[size_t(row)]) {
        chosen[t](row, c) = 1;
        if (c == fit.cluster[place]) break;
      }
    }
  }
  const int m = head.num_indexed(), sampled = int(0.015 * m) + 2 * std::max(16, int(0.005 * m));
  for (size_t t = 0; t < kTargets.size(); ++t) {
    const double index = centroid_bytes(study, clusters) + sampled * 2.0 * head.head_dim;
    const Mask sets = group_union(head, chosen[t]);
    study.add("tactic", target(kTargets[t]), tokens_of(clusters, sets), Vector::Constant(sets.rows(), index));
    study.add("tactic_own", target(kTargets[t]), tokens_of(clusters, chosen[t]), Vector::Constant(head.num_rows(), index));
  }
}

namespace detail {

// The chosen clusters' centroids and value means stand for their tokens: weight n exp(q.c), direction the value mean.
inline TailSum centroid_tail(const HeadTruth& head, const Clusters& clusters, const Mask& approximate) {
  Matrix estimate = clusters.scores.array().exp();
  estimate.array().rowwise() *= clusters.size.transpose().cast<float>().array();
  for (int row = 0; row < head.num_rows(); ++row) estimate.row(row).array() *= approximate.row(row % head.num_queries).cast<float>();
  return {estimate * clusters.value_means, estimate.cast<double>().rowwise().sum()};
}

// Measures clusters read exactly and clusters that stand by centroid and f16 value mean, both joined over the group.
inline void add_two_zones(const Study& study, const Clusters& clusters, const char* rule, Parameter parameter, const Mask& exact_rows,
                          const Mask& candidate_rows) {
  const HeadTruth& head = study.head;
  const Mask exact = group_union(head, exact_rows);
  const Mask approximate = group_union(head, candidate_rows) * (1 - exact);
  const TailSum tail = centroid_tail(head, clusters, approximate);
  const Vector index = (centroid_bytes(study, clusters) + count_chosen(approximate).array() * 2.0 * head.head_dim).matrix();
  study.add(rule, parameter, tokens_of(clusters, exact), index, &tail);
}

}  // namespace detail

// Double-P's rule: clusters up to 95 % of the estimated weight are candidates, those up to p2 of that are read, the others estimated.
inline void run_double_p(const Study& study, const Clusters& clusters) {
  const HeadTruth& head = study.head;
  const auto orders = score_orders(clusters);
  for (const double p2 : {0.3, 0.5, 0.7, 0.9}) {
    Mask exact = Mask::Zero(head.num_rows(), clusters.count), candidates = exact;
    for (int row = 0; row < head.num_rows(); ++row) {
      const auto estimate = [&](int c) { return clusters.size[c] * std::exp(double(clusters.scores(row, c))); };
      double whole = head.always[row], read = head.always[row];
      for (int c = 0; c < clusters.count; ++c) whole += estimate(c);
      for (const int c : orders[size_t(row)]) {
        if (read / whole < 0.95 * p2) exact(row, c) = 1;
        if (read / whole < 0.95) candidates(row, c) = 1;
        read += estimate(c);
      }
    }
    detail::add_two_zones(study, clusters, "double_p", target(p2), exact, candidates);
  }
}

// RetroInfer's zones: the best 1.8 % of the clusters are read, the next 23.2 % estimated, the rest dropped. The parameter, a budget, is
// the size of the first zone in tokens; zones of a quarter to eight times 1.8 % show the rule's whole curve.
inline void run_retroinfer(const Study& study, const Clusters& clusters) {
  const auto orders = score_orders(clusters);
  for (const double zone : {0.0045, 0.009, 0.018, 0.036, 0.072, 0.144}) {
    const int read = std::max(1, int(std::lround(zone * clusters.count)));
    const int estimated = std::min(clusters.count, read + int(std::lround(0.232 * clusters.count)));
    Mask exact = Mask::Zero(study.head.num_rows(), clusters.count), candidates = exact;
    for (int row = 0; row < study.head.num_rows(); ++row) {
      mark_first(exact, row, orders[size_t(row)], read);
      mark_first(candidates, row, orders[size_t(row)], estimated);
    }
    detail::add_two_zones(study, clusters, "retroinfer", budget(std::round(zone * study.head.num_indexed())), exact, candidates);
  }
}

}  // namespace accuracy
