// Numbers and arrays as bytes: what was written is read, what is not there is refused.
#include "quorum/cpu/byte_stream.hpp"

#include <doctest/doctest.h>

#include "tests/support/error_message.hpp"

using namespace quorum;

namespace {

std::string read_error(std::span<const std::byte> bytes) {
  return test::error_message(ErrorCode::invalid_file, [&] {
    cpu::ByteReader in(bytes);
    in.get<int32_t>("number");
    std::vector<uint16_t> values;
    in.get_array(values, 3, "values");
  });
}

}  // namespace

TEST_CASE("byte stream: numbers and arrays come back, arrays end at a multiple of 8 bytes") {
  cpu::ByteWriter out;
  const uint16_t values[] = {7, 8, 9};
  out.put(int32_t{-5});
  out.put_array(values, 3);
  out.put(1.5f);
  CHECK(out.bytes().size() == 24 + 4);  // 4 + 8 + 6, padded to 24
  cpu::ByteReader in(out.bytes());
  CHECK(in.size() == 28);
  CHECK(in.get<int32_t>("a") == -5);
  std::vector<uint16_t> read;
  in.get_array(read, 3, "b");
  CHECK(read == std::vector<uint16_t>{7, 8, 9});
  CHECK_FALSE(in.at_end());
  CHECK(in.get<float>("c") == 1.5f);
  CHECK(in.at_end());
}

TEST_CASE("byte stream: what is cut or too long is refused by its name") {
  cpu::ByteWriter out;
  const uint16_t values[] = {7, 8, 9, 10};
  out.put(int32_t{1});
  out.put_array(values, 4);
  CHECK(read_error(out.bytes()) == "ClusterIndex::load: values must be of a length that fits the index, got 4");
  const std::span<const std::byte> bytes(out.bytes());
  CHECK(read_error(bytes.first(3)) == "ClusterIndex::load: number must be within the bytes, got 3 bytes");
  CHECK(read_error(bytes.first(11)) == "ClusterIndex::load: values must be within the bytes, got 11 bytes");
  cpu::ByteWriter three;
  three.put(int32_t{1});
  three.put_array(values, 3);
  CHECK(read_error(std::span<const std::byte>(three.bytes()).first(17)) ==
        "ClusterIndex::load: values must be within the bytes, got 17 bytes");
  cpu::ByteWriter negative;
  negative.put(int32_t{1});
  negative.put(int64_t{-1});
  CHECK(read_error(negative.bytes()) == "ClusterIndex::load: values must be of a length that fits the index, got -1");
}

TEST_CASE("checksum: every bit and the length count") {
  std::vector<std::byte> bytes(37, std::byte{5});
  const uint64_t sum = cpu::checksum_of(bytes);
  for (size_t at = 0; at < bytes.size(); ++at)
    for (int bit = 0; bit < 8; ++bit) {
      auto changed = bytes;
      changed[at] ^= std::byte(1 << bit);
      CHECK(cpu::checksum_of(changed) != sum);
    }
  auto longer = bytes;
  longer.push_back(std::byte{0});
  CHECK(cpu::checksum_of(longer) != sum);
}
