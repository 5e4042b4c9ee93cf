// Any sequence of operations on an index, against the model of tests/support/index_life.hpp: four bytes an operation.
#include "tests/fuzz/mutate.hpp"
#include "tests/support/index_life.hpp"

using namespace quorum;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kMostOperations = 200;
  if (size < 2) return 0;
  std::vector<test::LifeOperation> operations;
  for (size_t at = 2; at + 4 <= size && operations.size() < kMostOperations; at += 4)
    operations.push_back({test::LifeAction(data[at] % uint8_t(test::LifeAction::count)), data[at + 1], data[at + 2], data[at + 3]});
  ++fuzz::num_accepted;
  const auto failure = test::live(operations, data[0], data[1] % 8);
  if (!failure) return 0;
  const auto fails = [&](const auto& some) { return test::live(some, data[0], data[1] % 8).has_value(); };
  std::string story = failure->what + ", seed " + std::to_string(data[0]) + ", pieces " + std::to_string(data[1] % 8) + ":";
  for (const auto& operation : test::shrink(operations, fails)) story += " " + test::to_string(operation);
  fuzz::expect(false, story.c_str());
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  fuzz::Draw draw(seed);
  std::string text(reinterpret_cast<const char*>(data), size);
  if (size < 40 || draw.one_in(4)) {  // a life of its own; appending is what happens most
    text.assign(2 + 4 * (8 + draw.below(80)), '\0');
    for (char& c : text) c = char(draw.bits());
    for (size_t at = 2; at + 4 <= text.size(); at += 4)
      if (draw.one_in(2)) text[at] = char(test::LifeAction::append);
  } else {
    fuzz::mutate_bytes(text, 64);
  }
  return fuzz::put(text, data, max_size);
}
