// Rules that rank pages of neighbouring tokens: quest, page_mean_std, and twilight on top of quest.
#pragma once

#include "bench/accuracy/record.hpp"

namespace accuracy {

inline constexpr int kPageSize = 16;

namespace detail {

// Per page two f16 vectors and the score of every row: q . middle + |q| . spread, channel by channel.
struct PageScores {
  int count = 0;  // whole pages; the tokens after them are never chosen
  Matrix scores;  // [rows][count]
};

// Quest: the largest score any key of the page's box can have. middle and spread: half sum and half difference of minimum and maximum.
inline PageScores box_scores(const HeadTruth& head) {
  PageScores pages{head.num_indexed() / kPageSize, {}};
  Matrix middle(pages.count, head.head_dim), spread(pages.count, head.head_dim);
  for (int p = 0; p < pages.count; ++p) {
    const auto keys = head.keys.middleRows(p * kPageSize, kPageSize);
    middle.row(p) = 0.5f * (keys.colwise().maxCoeff() + keys.colwise().minCoeff());
    spread.row(p) = 0.5f * (keys.colwise().maxCoeff() - keys.colwise().minCoeff());
  }
  pages.scores = head.queries * middle.transpose() + head.queries.cwiseAbs() * spread.transpose();
  return pages;
}

// The page's mean key and half a standard deviation in each channel.
inline PageScores mean_std_scores(const HeadTruth& head) {
  PageScores pages{head.num_indexed() / kPageSize, {}};
  Matrix mean(pages.count, head.head_dim), half_deviation(pages.count, head.head_dim);
  for (int p = 0; p < pages.count; ++p) {
    const auto keys = head.keys.middleRows(p * kPageSize, kPageSize);
    mean.row(p) = keys.colwise().mean();
    half_deviation.row(p) = 0.5f * (keys.rowwise() - mean.row(p)).array().square().colwise().mean().sqrt();
  }
  pages.scores = head.queries * mean.transpose() + head.queries.cwiseAbs() * half_deviation.transpose();
  return pages;
}

// The `count` best pages of each row, as tokens.
inline Mask best_pages(const HeadTruth& head, const PageScores& pages, int count) {
  Mask kept = Mask::Zero(head.num_rows(), head.num_indexed());
  for (int row = 0; row < head.num_rows(); ++row) {
    const std::vector<int> order = descending_order(pages.scores.row(row));
    for (int i = 0; i < count; ++i) kept.row(row).segment(order[size_t(i)] * kPageSize, kPageSize) = 1;
  }
  return kept;
}

inline void run_pages(const Study& study, const char* rule, const PageScores& pages) {
  for (int tokens = 64; tokens <= 4096 && tokens / kPageSize < pages.count; tokens *= 2) {
    const Mask sets = group_union(study.head, best_pages(study.head, pages, tokens / kPageSize));
    study.add(rule, budget(tokens), sets, Vector::Constant(sets.rows(), pages.count * 4.0 * study.head.head_dim));
  }
}

// Keys in 4 bits, minimum and step of each token's row kept in f16.
inline Matrix int4_rows(const Matrix& keys) {
  Matrix out(keys.rows(), keys.cols());
  for (Eigen::Index r = 0; r < keys.rows(); ++r) {
    const float least = keys.row(r).minCoeff(), step = std::max((keys.row(r).maxCoeff() - least) / 15.0f, 1e-12f);
    out.row(r) = ((keys.row(r).array() - least) / step).round() * step + least;
  }
  return out;
}

}  // namespace detail

// Quest: pages by the bound of their box, a fixed budget per head, joined over the group. Bytes: two f16 vectors a page.
inline void run_quest(const Study& study) { detail::run_pages(study, "quest", detail::box_scores(study.head)); }

// As Quest, with mean and standard deviation instead of the box.
inline void run_page_mean_std(const Study& study) { detail::run_pages(study, "page_mean_std", detail::mean_std_scores(study.head)); }

// Twilight: Quest proposes a quarter of the tokens, int4 keys give their weights, each head reads the fewest that hold p of the weight.
// Bytes: the pages' boxes, int4 keys of the joined proposals (head_dim / 2 + 4 each), then the joined choices.
inline void run_twilight(const Study& study) {
  const HeadTruth& head = study.head;
  const detail::PageScores pages = detail::box_scores(head);
  const Mask proposed = detail::best_pages(head, pages, std::max(1, pages.count / 4));
  const Vector index =
      (pages.count * 4.0 * head.head_dim + count_chosen(group_union(head, proposed)).array() * (head.head_dim / 2 + 4)).matrix();
  Matrix estimate = head.queries * detail::int4_rows(head.keys).transpose();
  estimate.array().colwise() -= head.top.cast<float>().array();
  estimate = estimate.array().exp() * proposed.cast<float>();
  constexpr double kTargets[] = {0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98};
  std::vector<Mask> chosen(std::size(kTargets), Mask::Zero(head.num_rows(), head.num_indexed()));
  for (int row = 0; row < head.num_rows(); ++row) {
    const std::vector<int> order = descending_order(estimate.row(row));
    const double whole = head.always[row] + estimate.row(row).cast<double>().sum();
    for (size_t t = 0; t < std::size(kTargets); ++t) {
      double read = head.always[row];
      for (size_t i = 0; i < order.size() && read < kTargets[t] * whole; ++i) {
        chosen[t](row, order[i]) = 1;
        read += double(estimate(row, order[i]));
      }
    }
  }
  for (size_t t = 0; t < std::size(kTargets); ++t) study.add("twilight", target(kTargets[t]), group_union(head, chosen[t]), index);
}

}  // namespace accuracy
