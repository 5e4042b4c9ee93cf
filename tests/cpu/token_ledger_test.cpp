// The books of an index: what lives, what is listed, and in which order.
#include "quorum/cpu/token_ledger.hpp"

#include <doctest/doctest.h>

#include "tests/support/tokens.hpp"

using namespace quorum;
using namespace quorum::cpu;

namespace {

std::vector<int32_t> listed(const TokenLedger& ledger) {
  const AlwaysRead always = ledger.always();
  return {always.listed, always.listed + always.num_listed};
}

using Tokens = std::vector<int32_t>;

}  // namespace

TEST_CASE("token ledger: the first tokens are sinks, the others wait") {
  TokenLedger ledger(2);
  CHECK(ledger.num_tokens() == 0);
  ledger.append(1);
  CHECK(ledger.num_sinks() == 1);
  ledger.append(5);
  CHECK(ledger.num_sinks() == 2);
  CHECK(ledger.num_waiting() == 3);
  CHECK(listed(ledger) == Tokens{0, 1, 2, 3, 4});
  CHECK(ledger.always().num_known == 5);
  CHECK(ledger.live() == nullptr);
  CHECK(ledger.num_live() == 5);
}

TEST_CASE("token ledger: tokens go to clusters and come back as the oldest") {
  TokenLedger ledger(1);
  ledger.append(8);
  CHECK(ledger.oldest_waiting(3) == Tokens{1, 2, 3});
  ledger.take({1, 2, 3});
  CHECK(listed(ledger) == Tokens{0, 4, 5, 6, 7});
  CHECK(ledger.num_live() == 8);
  ledger.put_back({3, 1});
  CHECK(listed(ledger) == Tokens{0, 1, 3, 4, 5, 6, 7});
  CHECK(ledger.num_sinks() == 1);
}

TEST_CASE("token ledger: erasing leaves holes, overwriting fills them as the newest") {
  TokenLedger ledger(2);
  ledger.append(130);
  ledger.take(test::token_run(2, 120));
  ledger.erase({1, 125});
  CHECK(ledger.num_live() == 6);
  CHECK(ledger.num_sinks() == 1);
  CHECK(listed(ledger) == Tokens{0, 125, 126, 127, 128, 129});
  REQUIRE(ledger.live() != nullptr);
  CHECK(ledger.live()[0] == 1u);
  CHECK(ledger.live()[1] == uint64_t{7} << 61);
  CHECK(ledger.live()[2] == 3u);
  CHECK(ledger.lives(0));
  CHECK_FALSE(ledger.lives(124));
  ledger.erase({1, 125});  // erased already
  CHECK(ledger.num_live() == 6);
  ledger.overwrite({126, 127});
  ledger.overwrite({3, 5});
  CHECK(listed(ledger) == Tokens{0, 125, 127, 128, 129, 126, 3, 4});
  CHECK(ledger.num_live() == 8);
  ledger.append(132);
  CHECK(ledger.lives(131));
  CHECK(ledger.live()[2] == 15u);
  ledger.overwrite({1, 125});
  CHECK(ledger.live() == nullptr);  // no holes left
  CHECK(ledger.num_live() == 132);
}

TEST_CASE("token ledger: truncating frees numbers; sinks are the first tokens only while nothing else lives") {
  TokenLedger ledger(4);
  ledger.append(10);
  ledger.truncate(2);
  CHECK(ledger.num_tokens() == 2);
  CHECK(ledger.live() == nullptr);
  CHECK(listed(ledger) == Tokens{0, 1});
  ledger.append(6);
  CHECK(ledger.num_sinks() == 4);
  CHECK(listed(ledger) == Tokens{0, 1, 2, 3, 4, 5});
  ledger.erase({0, 2});
  ledger.append(7);
  CHECK(ledger.num_sinks() == 2);  // a sink that is gone stays gone
  CHECK(listed(ledger) == Tokens{2, 3, 4, 5, 6});
  ledger.truncate(0);
  CHECK(ledger.num_live() == 0);
  CHECK(listed(ledger).empty());
  ledger.append(3);
  CHECK(ledger.num_sinks() == 3);
}

TEST_CASE("token ledger: empty ranges change nothing") {
  TokenLedger ledger(1);
  ledger.append(64);
  ledger.erase({5, 5});
  ledger.overwrite({7, 7});
  ledger.truncate(64);
  CHECK(ledger.live() == nullptr);
  CHECK(listed(ledger) == test::token_run(0, 64));
  ledger.erase({63, 64});
  CHECK(ledger.live()[0] == ~uint64_t{0} >> 1);
}

TEST_CASE("token ledger: restored as it was saved") {
  TokenLedger ledger(2);
  ledger.restore(70, 1, {3, 69, 4}, {uint64_t{0x18}, uint64_t{0x20}});
  CHECK(ledger.num_tokens() == 70);
  CHECK(ledger.num_live() == 3);
  CHECK(ledger.num_sinks() == 1);
  CHECK(ledger.num_waiting() == 2);
  CHECK(ledger.lives(69));
  CHECK_FALSE(ledger.lives(5));
}
