// What one KV head of a trace attends to, exactly, and how far any choice of tokens is from it.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
// GCC bug 105593: false alarms inside its own AVX-512 intrinsics, wherever Eigen is inlined; so for the rest of the program's file.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <Eigen/Dense>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "quorum/core/element.hpp"
#include "quorum/cpu/executor.hpp"
#include "quorum/io/trace.hpp"

namespace accuracy {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXd;
using Mask = Eigen::Array<uint8_t, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// First tokens of a sequence, never indexed and always read. The indexed tokens are [kNumSinkTokens, num_tokens - num_queries).
inline constexpr int kNumSinkTokens = 4;

// One KV head of a trace with all its recorded queries. A row is one query of one query head: row = head_in_group * num_queries + query.
// A set is what one query reads, shared by the group: set = row % num_queries.
struct HeadTruth {
  int num_tokens = 0, num_queries = 0, group_size = 0, head_dim = 0;
  Matrix queries;              // [rows][head_dim], times sm_scale
  Matrix prompt_queries;       // [num_prompt_queries * group_size][head_dim]
  Matrix keys, values;         // [num_indexed][head_dim], indexed tokens only
  Matrix weights;              // [rows][num_indexed], exp(score - top)
  Vector top;                  // [rows], largest score of all visible tokens
  Vector always;               // [rows], weight of the tokens that are always read
  Vector total;                // [rows], weight of all visible tokens
  Matrix always_numerator;     // [rows][head_dim], weighted values of the tokens that are always read
  Matrix dense;                // [rows][head_dim], output of dense attention
  std::vector<int> positions;  // [num_queries]

  int num_rows() const { return group_size * num_queries; }
  int num_indexed() const { return num_tokens - num_queries - kNumSinkTokens; }
  // Tokens always read, on average over the queries of the protocol.
  double always_tokens() const { return kNumSinkTokens + num_queries / 2.0; }
  // What dense attention reads of f16 keys and values.
  double dense_bytes() const { return double(num_tokens) * 4 * head_dim; }
};

// Weighted values and weights that stand for tokens that were not read.
struct TailSum {
  Matrix numerator;  // [rows][head_dim]
  Vector weight;     // [rows]
};

// How good a choice is, per row.
struct Quality {
  std::vector<double> error;     // |output - dense| / |dense|
  std::vector<double> attained;  // share of the total weight that was read
};

// Rows [first_row, ...) of one head out of [num_rows][num_heads][head_dim], as floats.
inline Matrix head_rows(const quorum::io::TraceRows& rows, int head, int first_row, int count) {
  Matrix out(count, rows.head_dim);
  const auto convert = [&]<class T>(T) {
    std::vector<T> line(static_cast<size_t>(rows.head_dim));
    for (int r = 0; r < count; ++r) {
      std::memcpy(line.data(), rows.data + (first_row + r) * rows.row_bytes() + head * rows.head_bytes(), size_t(rows.head_bytes()));
      for (int i = 0; i < rows.head_dim; ++i) out(r, i) = quorum::to_float(line[size_t(i)]);
    }
  };
  if (rows.type == quorum::ElementType::f16) convert(quorum::f16{});
  if (rows.type == quorum::ElementType::bf16) convert(quorum::bf16{});
  if (rows.type == quorum::ElementType::f32) convert(float{});
  return out;
}

// Calls work(first, count) on chunks of rows, in parallel.
template <class Work>
void for_row_chunks(quorum::Executor& executor, int num_rows, Work work) {
  constexpr int kChunk = 32;
  quorum::for_each_task(executor, int(quorum::ceil_div(num_rows, kChunk)),
                        [&](int chunk) { work(chunk * kChunk, std::min(kChunk, num_rows - chunk * kChunk)); });
}

namespace detail {

// Scores of some rows against all tokens, made into weights in place; tokens after a query's position weigh 0.
inline void weigh_rows(HeadTruth& head, const Matrix& keys, const Matrix& values, int first, int count) {
  Matrix weights = head.queries.middleRows(first, count) * keys.transpose();
  const int indexed = head.num_indexed(), last = head.num_tokens - kNumSinkTokens - indexed;
  for (int r = 0; r < count; ++r) {
    const int row = first + r, visible = head.positions[size_t(row % head.num_queries)] + 1;
    const float top = weights.row(r).head(visible).maxCoeff();
    weights.row(r).head(visible) = (weights.row(r).head(visible).array() - top).exp();
    weights.row(r).tail(head.num_tokens - visible).setZero();
    head.top[row] = top;
    head.total[row] = weights.row(r).cast<double>().sum();
    head.always[row] = weights.row(r).head(kNumSinkTokens).cast<double>().sum() + weights.row(r).tail(last).cast<double>().sum();
  }
  head.weights.middleRows(first, count) = weights.middleCols(kNumSinkTokens, indexed);
  head.always_numerator.middleRows(first, count) =
      weights.leftCols(kNumSinkTokens) * values.topRows(kNumSinkTokens) + weights.rightCols(last) * values.bottomRows(last);
  const Matrix sum = weights * values;
  head.dense.middleRows(first, count) = sum.array().colwise() / head.total.segment(first, count).cast<float>().array();
}

}  // namespace detail

// Exact weights and outputs of one KV head.
//
// Caller: every query position is at least num_tokens - num_queries, so that all indexed tokens are visible.
// Cost: two products of [rows][head_dim] with [num_tokens][head_dim]; memory 4 bytes a row and token.
inline HeadTruth make_ground_truth(const quorum::io::Trace& trace, int kv_head, quorum::Executor& executor) {
  HeadTruth head;
  head.num_tokens = trace.num_tokens;
  head.num_queries = trace.num_queries;
  head.group_size = trace.num_qo_heads / trace.num_kv_heads;
  head.head_dim = trace.head_dim;
  head.positions.assign(trace.query_positions.begin(), trace.query_positions.end());
  const int rows = head.num_rows(), prompt_rows = trace.num_prompt_queries;
  head.queries.resize(rows, head.head_dim);
  head.prompt_queries.resize(prompt_rows * head.group_size, head.head_dim);
  for (int g = 0; g < head.group_size; ++g) {
    const int qo_head = kv_head * head.group_size + g;
    head.queries.middleRows(g * head.num_queries, head.num_queries) =
        head_rows(trace.queries, qo_head, 0, head.num_queries) * trace.sm_scale;
    if (prompt_rows == 0) continue;
    head.prompt_queries.middleRows(g * prompt_rows, prompt_rows) = head_rows(trace.prompt_queries, qo_head, 0, prompt_rows);
  }
  const Matrix keys = head_rows(trace.keys, kv_head, 0, head.num_tokens), values = head_rows(trace.values, kv_head, 0, head.num_tokens);
  head.keys = keys.middleRows(kNumSinkTokens, head.num_indexed());
  head.values = values.middleRows(kNumSinkTokens, head.num_indexed());
  head.weights.resize(rows, head.num_indexed());
  head.always_numerator.resize(rows, head.head_dim);
  head.dense.resize(rows, head.head_dim);
  head.top.resize(rows);
  head.always.resize(rows);
  head.total.resize(rows);
  for_row_chunks(executor, rows, [&](int first, int count) { detail::weigh_rows(head, keys, values, first, count); });
  return head;
}

// Error and attained ratio of every row if it reads the tokens of `kept` besides those always read.
//
// Shapes: kept [num_queries or rows][num_indexed]; row r reads line r % kept.rows(). tail may be nullptr: the rest is dropped.
// Cost: one product of [rows][num_indexed] with [num_indexed][head_dim].
inline Quality evaluate(const HeadTruth& head, const Mask& kept, const TailSum* tail, quorum::Executor& executor) {
  Quality quality;
  quality.error.resize(size_t(head.num_rows()));
  quality.attained.resize(size_t(head.num_rows()));
  for_row_chunks(executor, head.num_rows(), [&](int first, int count) {
    Matrix weights = head.weights.middleRows(first, count);
    for (int r = 0; r < count; ++r) weights.row(r).array() *= kept.row((first + r) % kept.rows()).cast<float>();
    Matrix output = head.always_numerator.middleRows(first, count) + weights * head.values;
    if (tail != nullptr) output += tail->numerator.middleRows(first, count);
    for (int r = 0; r < count; ++r) {
      const int row = first + r;
      const double read = head.always[row] + weights.row(r).cast<double>().sum();
      output.row(r) /= float(read + (tail != nullptr ? tail->weight[row] : 0.0));
      quality.error[size_t(row)] = (output.row(r) - head.dense.row(row)).norm() / head.dense.row(row).norm();
      quality.attained[size_t(row)] = read / head.total[row];
    }
  });
  return quality;
}

}  // namespace accuracy
