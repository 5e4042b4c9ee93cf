// What codes say of the unread rest: surprise, and the model of the error, against their formulas.
#include "quorum/core/coded_rest.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/near.hpp"

using namespace quorum;

TEST_CASE("surprise: exact by expected weight with four more tokens as expected, between 1 and 8") {
  CHECK(code_surprise(3.0, 3.0, 20) == 1.0);
  CHECK(code_surprise(1.0, 3.0, 20) == 1.0);
  CHECK(test::near(code_surprise(6.0, 3.0, 20), (2.0 * 20.0 + 4.0) / 24.0, 1e-12));
  CHECK(test::near(code_surprise(9.0, 3.0, 4), 2.0, 1e-12));
  CHECK(code_surprise(1e30, 3.0, 100) == 8.0);
  // The more tokens, the less the prior counts; the ratio does not depend on the unit of weight.
  CHECK(code_surprise(6.0, 3.0, 1000) > code_surprise(6.0, 3.0, 16));
  CHECK(test::near(code_surprise(6e-20, 3e-20, 20), code_surprise(6.0, 3.0, 20), 1e-12));
}

TEST_CASE("no surprise without tokens or without an expectation") {
  CHECK(code_surprise(5.0, 1.0, 0) == 1.0);
  CHECK(code_surprise(5.0, 0.0, 20) == 1.0);
  CHECK(code_surprise(5.0, -1.0, 20) == 1.0);
  CHECK(code_surprise(5.0, double(kNan), 20) == 1.0);
  CHECK(code_surprise(double(kNan), 5.0, 20) == 1.0);
}

TEST_CASE("the model: spread of values, lost variance of scores, lengths, by the output's square") {
  const ValueMoments moments{2.0f, 3.0f, 0.25f};
  const double query_square = 4.0, output_square = 5.0, total = 7.0;
  const ErrorModel model = ErrorModel::of(moments, query_square, output_square, total);
  const double lost = (std::acos(-1.0) / 2.0 - 1.0) * query_square * 0.25;
  const double unit = 1.6 * 1.6 / (total * total * output_square);
  CHECK(test::near(model.per_square, unit * (2.0 + 0.5 * (std::exp(lost) - 1.0) * 8.0), 1e-5 * model.per_square));
  CHECK(test::near(model.per_outside, unit * 10.0, 1e-12));
}

TEST_CASE("the lost variance is bounded: far too long queries give a large error, no infinity") {
  const ErrorModel model = ErrorModel::of({2.0f, 3.0f, 1.0f}, 1e9, 5.0, 1.0);
  CHECK(std::isfinite(model.per_square));
  CHECK(model.per_square == ErrorModel::of({2.0f, 3.0f, 1.0f}, 1e12, 5.0, 1.0).per_square);
  CHECK(model.per_square > ErrorModel::of({2.0f, 3.0f, 1.0f}, 1.0, 5.0, 1.0).per_square);
}

TEST_CASE("the error adds squares; what must be listed leaves the target") {
  const ErrorModel model{0.04, 0.01};
  CHECK(model.error(0.0, 0.0) == 0.0);
  CHECK(test::near(model.error(4.0, 0.0), 0.4, 1e-12));
  CHECK(test::near(model.error(4.0, 9.0), 0.5, 1e-12));
  for (const double target : {0.2, 0.3, 0.4}) {
    const double listed = model.squares_to_list(4.0, 1.0, target);
    CHECK(listed > 0.0);
    CHECK(listed < 4.0);
    CHECK(test::near(model.error(4.0 - listed, 1.0), target, 1e-12));
  }
  CHECK(model.squares_to_list(4.0, 0.0, 0.9) < 0.0);  // nothing needs to be listed
  CHECK(model.squares_to_list(4.0, 9.0, 0.2) > 4.0);  // everything would not do
}

TEST_CASE("values that do not matter need no token") {
  const ErrorModel model = ErrorModel::of({}, 4.0, 5.0, 7.0);
  CHECK(model.per_square == 0.0);
  CHECK(model.squares_to_list(4.0, 1.0, 0.1) == 0.0);
}

TEST_CASE("what must be listed leaves the rest that the target allows") {
  for (const double target : {0.3, 0.9})
    for (const double factor : {1.0, 1.2, 5.0})
      for (const double surprise : {1.0, 3.0}) {
        const double read = 2.0, expected = 30.0, rest = surprise * expected;
        const double need = coded_need(target, read, rest, factor, surprise);
        // Listed tokens weigh `surprise` times what is expected of them.
        const double after = read + surprise * need, left = rest - surprise * need;
        CHECK(test::near(after, target * (after + factor * left), 1e-9));
      }
  CHECK(coded_need(0.5, 10.0, 1.0, 1.2, 1.0) < 0.0);
}

TEST_CASE("clusters outside follow what codes make of the candidates, downwards only") {
  CHECK(outside_factor(3.0, 4.0) == 0.75);
  CHECK(outside_factor(5.0, 4.0) == 1.0);
  CHECK(outside_factor(1.0, 0.0) == 1.0);
  CHECK(outside_factor(double(kNan), 4.0) == 1.0);
}

TEST_CASE("candidates and the others that enter leave a tenth of what candidates leave") {
  CHECK(test::near(coverage_with_outside(0.9), 0.99, 1e-7));
  CHECK(coverage_with_outside(1.0) == 1.0);
}

TEST_CASE("without a variance model codes lose nothing") {
  CHECK(half_lost_variance(VarianceModel::none, 5.0f, 64) == 0.0f);
  CHECK(half_lost_variance(VarianceModel::shared, 5.0f, 64) == 0.5f * lost_variance(5.0f, 64));
}
