// One measured point of one rule, and the steps that all rules share: ordering, joining a group's sets, counting.
#pragma once

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "bench/accuracy/clusters.hpp"

namespace accuracy {

// What a rule was told: a target ratio, a budget of tokens, or a target error.
struct Parameter {
  enum class Kind { ratio, budget, error };

  double value = 0.0;
  Kind kind = Kind::ratio;
};
inline Parameter target(double ratio) { return {ratio, Parameter::Kind::ratio}; }
inline Parameter budget(double tokens) { return {tokens, Parameter::Kind::budget}; }
inline Parameter target_error(double error) { return {error, Parameter::Kind::error}; }
constexpr const char* name_of(Parameter::Kind kind) {
  return kind == Parameter::Kind::ratio ? "target" : kind == Parameter::Kind::budget ? "budget" : "target_error";
}

// A rule at one parameter on one KV head with one seed.
struct Record {
  std::string trace;
  std::string rule;
  Parameter parameter;
  int seed = 0;
  std::vector<double> tokens;          // [sets] indexed tokens read; those always read are not counted
  std::vector<double> share;           // [sets] bytes read, as a share of what dense attention reads
  std::vector<double> reported_share;  // the same as the library itself reports it; empty for the bench's own rules
  Quality quality;                     // [rows]
};

// The head under study and where its records go.
struct Study {
  const HeadTruth& head;
  quorum::Executor& executor;
  std::vector<Record>& records;
  std::string trace;
  int seed = 0;

  // Measures a choice of tokens. index_bytes: [sets], all that is read besides keys and values of tokens.
  void add(const std::string& rule, Parameter parameter, const Mask& kept, const Vector& index_bytes, const TailSum* tail = nullptr) const {
    Record record{trace, rule, parameter, seed, {}, {}, {}, evaluate(head, kept, tail, executor)};
    for (Eigen::Index set = 0; set < kept.rows(); ++set) {
      record.tokens.push_back(double(kept.row(set).cast<int>().sum()));
      record.share.push_back(((record.tokens.back() + head.always_tokens()) * 4 * head.head_dim + index_bytes[set]) / head.dense_bytes());
    }
    records.push_back(std::move(record));
  }
  Vector no_index(Eigen::Index sets) const { return Vector::Zero(sets); }
};

// Indices of `values` from the largest to the smallest; ties by index.
template <class Values>
std::vector<int> descending_order(const Values& values) {
  std::vector<int> order(size_t(values.size()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return values[a] > values[b]; });
  return order;
}

// One line per query out of one per row: the union over the group's heads.
inline Mask group_union(const HeadTruth& head, const Mask& rows) {
  Mask sets = rows.topRows(head.num_queries);
  for (int g = 1; g < head.group_size; ++g) sets = sets.max(rows.middleRows(g * head.num_queries, head.num_queries));
  return sets;
}

// One line per query out of one per row: the largest over the group's heads.
inline Matrix group_max(const HeadTruth& head, const Matrix& rows) {
  Matrix sets = rows.topRows(head.num_queries);
  for (int g = 1; g < head.group_size; ++g) sets = sets.cwiseMax(rows.middleRows(g * head.num_queries, head.num_queries));
  return sets;
}

// Marks the first `count` of `order` in one line.
inline void mark_first(Mask& mask, Eigen::Index line, const std::vector<int>& order, int count) {
  for (int i = 0; i < count; ++i) mask(line, order[size_t(i)]) = 1;
}

// Number of chosen lines' entries.
inline Vector count_chosen(const Mask& mask) { return mask.cast<double>().rowwise().sum().matrix(); }

}  // namespace accuracy
