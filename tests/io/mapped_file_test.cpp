#include "quorum/io/mapped_file.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <type_traits>

#include "io_test_support.hpp"

using quorum::Error;
using quorum::ErrorCode;
using quorum::io::MappedFile;
using namespace quorum::test;

namespace {

std::string text_of(const MappedFile& file) { return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()); }

// A file that is there during a test case.
struct TemporaryFile {
  explicit TemporaryFile(const std::string& content) : path((std::filesystem::temp_directory_path() / "quorum_mapped_file_test").string()) {
    std::ofstream(path, std::ios::binary) << content;
  }
  ~TemporaryFile() { std::filesystem::remove(path); }
  std::string path;
};

}  // namespace

TEST_CASE("mapped file: bytes of a file, of memory and of nothing") {
  const TemporaryFile file("content");
  CHECK(text_of(MappedFile::open(file.path)) == "content");
  CHECK(text_of(MappedFile::copy(as_bytes("memory"))) == "memory");
  CHECK(MappedFile().bytes().empty());
}

TEST_CASE("mapped file: an empty file has no bytes and no error") {
  const TemporaryFile file("");
  CHECK(MappedFile::open(file.path).bytes().empty());
}

TEST_CASE("mapped file: moving keeps the bytes where they are") {
  static_assert(!std::is_copy_constructible_v<MappedFile> && std::is_nothrow_move_constructible_v<MappedFile>);
  const TemporaryFile source("content");
  for (const bool mapped : {true, false}) {
    MappedFile first = mapped ? MappedFile::open(source.path) : MappedFile::copy(as_bytes("content"));
    const std::byte* where = first.bytes().data();
    MappedFile second(std::move(first));
    CHECK(second.bytes().data() == where);
    MappedFile third = MappedFile::copy(as_bytes("other"));
    third = std::move(second);
    CHECK(third.bytes().data() == where);
    CHECK(text_of(third) == "content");
  }
}

TEST_CASE("mapped file: what cannot be read is an io_failure that names the file") {
  const std::string folder = std::filesystem::temp_directory_path().string(), missing = folder + "/quorum_no_such_file";
  CHECK(message_of([&] { MappedFile::open(missing); }) ==
        "MappedFile::open: '" + missing + "' must be readable, got No such file or directory");
  CHECK(message_of([&] { MappedFile::open(folder); }) ==
        "MappedFile::open: '" + folder + "' must be a regular file, got a directory or a device");
  CHECK(message_of([] { MappedFile::open("/dev/null"); }) ==
        "MappedFile::open: '/dev/null' must be a regular file, got a directory or a device");
  try {
    MappedFile::open(missing);
    FAIL("opened a missing file");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::io_failure);
  }
}
