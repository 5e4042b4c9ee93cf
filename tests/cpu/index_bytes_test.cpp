// Saved indexes: what is loaded is what was saved; whatever else the bytes are, they are refused or harmless.
#include "quorum/cpu/index_bytes.hpp"

#include <doctest/doctest.h>

#include "quorum/cpu/cluster_index.hpp"
#include "tests/support/cache.hpp"
#include "tests/support/error_message.hpp"
#include "tests/support/random.hpp"

using namespace quorum;

namespace {

constexpr AttentionShape kShape{6, 2, 40, 0.0f};

ClusterIndex index_of(const IndexOptions& options, int num_tokens = 500, bool holes = true) {
  const auto data = test::clustered_data({num_tokens, 2, 6, 40, 30, 17});
  const test::TestCache cache({num_tokens, 2, 40, ElementType::f16, test::Layout::nhd}, data.keys, data.values);
  const QueryView prompt = QueryView::contiguous(data.queries.data(), 30, 6, 40);
  SerialExecutor executor;
  ClusterIndex index(kShape, options);
  index.build(cache.view().first(num_tokens / 2), &prompt, executor);
  index.append(cache.view(), executor);
  if (holes) {
    index.erase(10, 47);
    index.overwrite(20, 30);
  }
  return index;
}

std::vector<IndexOptions> all_kinds() {
  std::vector<IndexOptions> kinds;
  for (const IndexStorage storage : {IndexStorage::int8, IndexStorage::f32})
    for (const VarianceModel model : {VarianceModel::none, VarianceModel::shared, VarianceModel::diagonal})
      for (const bool codes : {true, false}) {
        IndexOptions options;
        options.storage = storage;
        options.variance = model;
        options.residual_codes = codes;
        options.cluster_size = 7;
        options.segment_tokens = 100;
        options.recluster_every = 64;
        options.merge_tokens = 96;
        options.window_tokens = 5;
        options.pieces_per_append = codes ? 0 : 1000;
        options.seed = 99;
        kinds.push_back(options);
      }
  return kinds;
}

// The message of loading, or "no error".
std::string load_error(const std::vector<std::byte>& bytes) {
  return test::error_message(ErrorCode::invalid_file, [&] { ClusterIndex::load(kShape, bytes); });
}
// The same with a checksum that is right, so that the reader sees the change.
std::string field_error(std::vector<std::byte> bytes) {
  cpu::IndexHeader header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  header.total_bytes = bytes.size();
  header.checksum = cpu::checksum_of(std::span<const std::byte>(bytes).subspan(sizeof(header)));
  std::memcpy(bytes.data(), &header, sizeof(header));
  return load_error(bytes);
}

template <class T>
std::vector<std::byte> with(std::vector<std::byte> bytes, size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof(T));
  return bytes;
}

}  // namespace

TEST_CASE("saving and loading: every kind of index comes back with the same bytes, lists and options") {
  for (const IndexOptions& options : all_kinds()) {
    const ClusterIndex index = index_of(options);
    const auto bytes = index.save();
    const ClusterIndex loaded = ClusterIndex::load(kShape, bytes);
    CHECK(loaded.save() == bytes);
    CHECK(loaded.bytes() == index.bytes());
    CHECK(loaded.num_tokens() == 500);
    CHECK(loaded.num_live_tokens() == 500 - 27);
    CHECK(loaded.num_cluster_slots() == index.num_cluster_slots());
    CHECK(loaded.options().seed == 99);
    CHECK(loaded.options().variance == options.variance);
    CHECK(loaded.options().storage == options.storage);
    CHECK(loaded.view().num_indexed == index.view().num_indexed);
  }
}

TEST_CASE("saving and loading: an index without tokens, and one without clusters") {
  const ClusterIndex empty(kShape, IndexOptions{});
  CHECK(ClusterIndex::load(kShape, empty.save()).num_tokens() == 0);
  const ClusterIndex waiting = index_of(IndexOptions{}, 100, false);
  CHECK(waiting.view().empty() == ClusterIndex::load(kShape, waiting.save()).view().empty());
}

TEST_CASE("a loaded index lives on as the saved one does") {
  const auto data = test::clustered_data({900, 2, 6, 40, 1, 18});
  const test::TestCache cache({900, 2, 40, ElementType::f32, test::Layout::nhd}, data.keys, data.values);
  SerialExecutor executor;
  ClusterIndex index = index_of(all_kinds()[2]);
  ClusterIndex loaded = ClusterIndex::load(kShape, index.save());
  for (ClusterIndex* one : {&index, &loaded}) {
    one->append(cache.view(), executor);
    one->truncate(700);
    one->invalidate(100, 300);
    one->append(cache.view().first(800), executor);
  }
  CHECK(index.save() == loaded.save());
}

TEST_CASE("an index of another shape is refused") {
  const auto bytes = index_of(IndexOptions{}).save();
  const auto shape_error = [&](const AttentionShape& shape) {
    return test::error_message(ErrorCode::invalid_file, [&] { ClusterIndex::load(shape, bytes); });
  };
  CHECK(shape_error({2, 2, 40, 0.0f}) == "ClusterIndex::load: shape must be that of the saved index, got 2");
  CHECK(shape_error({6, 3, 40, 0.0f}) == "ClusterIndex::load: shape must be that of the saved index, got 3");
  CHECK(shape_error({6, 2, 48, 0.0f}) == "ClusterIndex::load: shape must be that of the saved index, got 48");
}

TEST_CASE("a header that is not ours, of another version, or of other bytes is refused") {
  const auto bytes = index_of(IndexOptions{}).save();
  CHECK(load_error({}) == "ClusterIndex::load: the bytes must be at least a header of 32, got 0");
  CHECK(load_error(with(bytes, 0, 'q')) == "ClusterIndex::load: the first 8 bytes must be QUORUMIX, got others");
  CHECK(load_error(with(bytes, 8, uint32_t{2})) == "ClusterIndex::load: version must be 1, got 2");
  CHECK(load_error(with(bytes, 12, uint32_t{40})) == "ClusterIndex::load: header_bytes must be 32, got 40");
  auto shorter = bytes;
  shorter.resize(bytes.size() - 8);
  CHECK(load_error(shorter).find("total_bytes must be the number of bytes") != std::string::npos);
  CHECK(load_error(with(bytes, bytes.size() - 1, bytes.back() ^ std::byte{1})).find("checksum must be that of the bytes") !=
        std::string::npos);
}

TEST_CASE("a flipped bit anywhere is refused") {
  const auto bytes = index_of(IndexOptions{}, 60).save();
  const std::string want[] = {"QUORUMIX", "version", "header_bytes", "total_bytes", "checksum"};
  for (size_t at = 0; at < bytes.size(); at += at < 64 ? 1 : 13) {
    const std::string message = load_error(with(bytes, at, std::byte(uint8_t(bytes[at]) ^ 0x10)));
    CAPTURE(at);
    CHECK(std::any_of(std::begin(want), std::end(want), [&](const auto& word) { return message.find(word) != std::string::npos; }));
  }
}

TEST_CASE("wrong fields behind a right checksum are refused or harmless") {
  // 4 bytes each: any word of any index may become any other. What is accepted must be consistent: decoding from it is tested elsewhere.
  for (const IndexOptions& options : {all_kinds()[2], all_kinds()[5]}) {
    const auto bytes = index_of(options, 200).save();
    test::Random random(3);
    int refused = 0, accepted = 0;
    for (size_t at = sizeof(cpu::IndexHeader); at + 4 <= bytes.size(); at += at < 400 ? 4 : 52) {
      static constexpr uint32_t kWords[] = {0, 1, 0xffffffff, 0x7fffffff, 0x80000000, 0x7fc00000};
      const uint32_t word = random.below(2) == 0 ? kWords[random.below(6)] : uint32_t(random.bits());
      const std::string message = field_error(with(bytes, at, word));
      ++(message == "no error" ? accepted : refused);
      if (message != "no error") CHECK(message.rfind("ClusterIndex::load: ", 0) == 0);
    }
    CHECK(refused > 20);
    CHECK(accepted > 20);
  }
}

TEST_CASE("bytes that end early, anywhere, or go on are refused") {
  const auto bytes = index_of(all_kinds()[2], 200).save();
  for (size_t length = sizeof(cpu::IndexHeader); length < bytes.size(); length += length < 300 ? 8 : 1000) {
    auto part = bytes;
    part.resize(length);
    CHECK(field_error(part).rfind("ClusterIndex::load: ", 0) == 0);
  }
  auto more = bytes;
  more.resize(bytes.size() + 8);
  CHECK(field_error(more).find("the bytes must be no more than the index takes") != std::string::npos);
}
