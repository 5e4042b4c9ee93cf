#include "bench/accuracy/frontier.hpp"

#include <doctest/doctest.h>

using accuracy::budget;
using accuracy::Record;
using accuracy::target;

namespace {

Record record(const std::string& trace, accuracy::Parameter parameter, int seed, double share, double error) {
  return {trace, "rule", parameter, seed, {10.0, 30.0}, {share, share}, {}, {{error, error}, {0.4, 0.6}}};
}

}  // namespace

TEST_CASE("accuracy frontier: quantiles interpolate between order statistics") {
  CHECK(accuracy::quantile({3.0, 1.0, 2.0}, 0.5) == doctest::Approx(2.0));
  CHECK(accuracy::quantile({1.0, 2.0}, 0.25) == doctest::Approx(1.25));
  CHECK(accuracy::quantile({7.0}, 0.01) == doctest::Approx(7.0));
}

TEST_CASE("accuracy frontier: bytes at an error, log-log between two points") {
  const std::vector<std::pair<double, double>> points = {{0.04, 0.02}, {0.01, 0.08}};
  CHECK(accuracy::detail::meet(points, 0.04).share->mean == doctest::Approx(0.02));  // half-way in both logarithms
  CHECK(accuracy::detail::meet(points, 0.08).share->mean == doctest::Approx(0.01));
  CHECK(accuracy::detail::meet(points, 0.02).share->mean == doctest::Approx(0.04));
}

TEST_CASE("accuracy frontier: more bytes never count as worse, and errors out of reach say how far the rule went") {
  const std::vector<std::pair<double, double>> points = {{0.01, 0.08}, {0.02, 0.04}, {0.03, 0.05}};
  CHECK(accuracy::detail::meet(points, 0.04).share->mean == doctest::Approx(0.02).epsilon(0.6));
  const accuracy::FrontierRow above = accuracy::detail::meet(points, 0.03), below = accuracy::detail::meet(points, 0.1);
  CHECK(!above.share);
  CHECK(!above.always_better);
  CHECK(above.limit == 0.03);
  CHECK(!below.share);
  CHECK(below.always_better);
  CHECK(below.limit == 0.01);
}

TEST_CASE("accuracy frontier: heads and traces are pooled, seeds make the interval") {
  std::vector<Record> records;
  for (int seed = 0; seed < 2; ++seed) {
    for (const char* trace : {"m_layer01", "m_layer02"}) {
      records.push_back(record(trace, target(0.5), seed, 0.01 + 0.01 * seed, 0.08));
      records.push_back(record(trace, target(0.9), seed, 0.04 + 0.04 * seed, 0.02));
    }
  }
  const auto rows = accuracy::make_rows(records, false);
  REQUIRE(rows.size() == 4);
  CHECK(rows[0].traces == "m_layer01");
  CHECK(rows[1].parameter.value == 0.9);
  CHECK(rows[0].tokens.mean == doctest::Approx(20.0));
  CHECK(rows[0].hit_rate->mean == doctest::Approx(0.5));
  CHECK(rows[0].share.min == doctest::Approx(0.01));
  CHECK(rows[0].share.max == doctest::Approx(0.02));
  CHECK(accuracy::make_rows(records, true).size() == 2);
  const auto frontier = accuracy::make_frontier(records);
  REQUIRE(frontier.size() == accuracy::kFrontierErrors.size());
  CHECK(frontier[0].traces == "m");
  CHECK(frontier[0].always_better);  // 0.15
  CHECK(frontier[3].share->min == doctest::Approx(0.01 * std::pow(4.0, std::log(0.08 / 0.05) / std::log(4.0))));
  CHECK(frontier[3].share->max == doctest::Approx(2 * frontier[3].share->min));
}

TEST_CASE("accuracy frontier: budgets have no hit rate, own sets no frontier") {
  Record own = record("m", target(0.5), 0, 0.1, 0.05);
  own.rule = "tactic_own";
  CHECK(accuracy::make_frontier({own}).empty());
  CHECK(!accuracy::make_rows({record("m", budget(64), 0, 0.1, 0.05)}, false)[0].hit_rate);
}
