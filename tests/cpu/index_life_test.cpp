// An index through random lives: QUORUM_LIFE_OPERATIONS sets how many operations are run, QUORUM_LIFE_SEED where they begin.
#include <doctest/doctest.h>

#include <array>
#include <cstdlib>

#include "tests/support/index_life.hpp"

using namespace quorum;

namespace {

int64_t number_from(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}

std::string story(const std::vector<test::LifeOperation>& operations, uint64_t seed, int pieces) {
  const auto failure = test::live(operations, seed, pieces);
  std::string out =
      "seed " + std::to_string(seed) + ", pieces " + std::to_string(pieces) + ": " + (failure ? failure->what : "") + " after";
  for (const auto& operation : operations) out += " " + test::to_string(operation);
  return out;
}

}  // namespace

TEST_CASE("random lives: after every step the index holds the live tokens, each once, and decoding everything is dense attention") {
  constexpr int kOneLife = 400;
  const int64_t total = number_from("QUORUM_LIFE_OPERATIONS", 20'000), first = number_from("QUORUM_LIFE_SEED", 1);
  int64_t done = 0;
  for (uint64_t seed = uint64_t(first); done < total; ++seed, done += kOneLife) {
    const int pieces = std::array{0, 1, 3, 40}[seed % 4];
    test::Random random(seed);
    const auto operations = test::random_operations(kOneLife, random);
    if (!test::live(operations, seed, pieces)) continue;
    const auto fails = [&](const auto& some) { return test::live(some, seed, pieces).has_value(); };
    FAIL(story(test::shrink(operations, fails), seed, pieces));
  }
  CHECK(done >= total);
  MESSAGE(done << " operations from seed " << first);
}

TEST_CASE("a failure shrinks to the operations that it needs") {
  test::Random random(5);
  const auto is_save = [](const test::LifeOperation& operation) { return operation.action == test::LifeAction::save; };
  const auto fails = [&](const auto& some) { return std::count_if(some.begin(), some.end(), is_save) >= 2; };
  const auto operations = test::random_operations(200, random);
  REQUIRE(fails(operations));
  const auto least = test::shrink(operations, fails);
  REQUIRE(least.size() == 2);
  CHECK((is_save(least[0]) && is_save(least[1])));
}
