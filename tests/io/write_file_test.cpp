#include "quorum/io/write_file.hpp"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "io_test_support.hpp"
#include "quorum/core/random.hpp"
#include "quorum/io/mapped_file.hpp"

using quorum::Error;
using quorum::ErrorCode;
using quorum::io::MappedFile;
using quorum::io::write_file;
using namespace quorum::test;
namespace fs = std::filesystem;

namespace {

// An empty folder of its own during a test case.
struct Folder {
  Folder() : path(fs::temp_directory_path() / ("quorum_write_file_test_" + std::to_string(getpid()))) {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~Folder() { fs::remove_all(path); }
  std::string file(const char* name) const { return (path / name).string(); }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(path)) out.push_back(entry.path().filename().string());
    return out;
  }
  fs::path path;
};

std::string content_of(const std::string& path) {
  const MappedFile file = MappedFile::open(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

// Files larger than `bytes` cannot be written while this lives.
struct FileSizeLimit {
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before);
    const rlimit limit{bytes, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    handler = signal(SIGXFSZ, SIG_IGN);  // write() then says EFBIG
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, handler);
  }
  rlimit before{};
  void (*handler)(int) = nullptr;
};

// Content by its generation: 8 bytes of it, then as many bytes as belong to it, each depending on its place.
std::vector<std::byte> generation(uint64_t number) {
  std::vector<std::byte> out(200'000 + quorum::mix_bits(number) % 400'000);
  std::memcpy(out.data(), &number, 8);
  for (size_t i = 8; i < out.size(); ++i) out[i] = std::byte(number * 31 + i % 251);
  return out;
}
// The generation that the file holds, whole and nothing else; -1 if it is anything else.
int64_t whole_generation(const std::string& path) {
  const MappedFile file = MappedFile::open(path);
  uint64_t number = 0;
  if (file.bytes().size() < 8) return -1;
  std::memcpy(&number, file.bytes().data(), 8);
  const std::vector<std::byte> want = generation(number);
  return std::equal(want.begin(), want.end(), file.bytes().begin(), file.bytes().end()) ? int64_t(number) : -1;
}

[[noreturn]] void write_until_killed(const std::string& path, uint64_t first) {
  try {
    for (uint64_t i = first;; ++i) write_file(path, generation(i));
  } catch (...) {
    _exit(1);  // nothing of the test program may run twice
  }
}

}  // namespace

TEST_CASE("write file: new, in the place of another, empty, large; nothing else is left in the folder") {
  const Folder folder;
  const std::string path = folder.file("a.bin"), large(3'000'000, 'x');
  for (const std::string& content : {std::string("first"), std::string("second, longer"), std::string(), large, std::string("last")}) {
    write_file(path, as_bytes(content));
    CHECK(content_of(path) == content);
    CHECK(folder.names() == std::vector<std::string>{"a.bin"});
  }
}

TEST_CASE("write file: in the working folder, by its name alone") {
  const Folder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path);
  write_file("here.bin", as_bytes("x"));
  fs::current_path(before);
  CHECK(content_of(folder.file("here.bin")) == "x");
}

TEST_CASE("write file: the permissions of the old file are kept, a new one's are the process's own") {
  const Folder folder;
  const std::string path = folder.file("a.bin");
  const auto mode = [&] { return unsigned(fs::status(path).permissions()); };
  const mode_t before = umask(027);
  write_file(path, as_bytes("x"));
  CHECK(mode() == 0640);
  fs::permissions(path, fs::perms(0604));
  write_file(path, as_bytes("y"));
  CHECK(mode() == 0604);
  umask(before);
}

TEST_CASE("write file: who has the old content mapped keeps it; a link is replaced, not what it points to") {
  const Folder folder;
  const std::string path = folder.file("a.bin"), link = folder.file("link");
  write_file(path, as_bytes("old content"));
  const MappedFile old = MappedFile::open(path);
  write_file(path, as_bytes("new"));
  CHECK(std::memcmp(old.bytes().data(), "old content", 11) == 0);
  fs::create_symlink(path, link);
  write_file(link, as_bytes("other"));
  CHECK(content_of(path) == "new");
  CHECK(content_of(link) == "other");
  CHECK_FALSE(fs::is_symlink(link));
}

TEST_CASE("write file: a failure names the file and the reason and changes nothing") {
  const Folder folder;
  const std::string path = folder.file("a.bin"), missing = folder.file("none/a.bin");
  CHECK(message_of([&] { write_file(missing, {}); }) ==
        "write_file: '" + missing + "' must be in a folder that can be written to, got No such file or directory");
  CHECK(message_of([&] { write_file(folder.path.string(), {}); }) ==
        "write_file: '" + folder.path.string() + "' must be a regular file or absent, got a directory or a device");
  CHECK(message_of([] { write_file("/dev/null", {}); }).find("must be a regular file or absent, got a directory") != std::string::npos);
  CHECK(message_of([] { write_file("", {}); }).find("write_file: '' must be ") == 0);
  write_file(path, as_bytes("old"));
  const FileSizeLimit limit(100'000);
  CHECK(message_of([&] { write_file(path, as_bytes(std::string(200'000, 'x'))); }) ==
        "write_file: '" + path + "' must be writable, got File too large");
  CHECK(content_of(path) == "old");
  CHECK(folder.names() == std::vector<std::string>{"a.bin"});
  try {
    write_file(missing, {});
    FAIL("wrote into a missing folder");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::io_failure);
  }
}

TEST_CASE("write file: a leftover of a killed process with the same id is passed over") {
  const Folder folder;
  const std::string path = folder.file("a.bin");
  for (int i = 0; i < 1000; ++i) std::ofstream(path + ".tmp-" + std::to_string(getpid()) + "-" + std::to_string(i)) << "leftover";
  write_file(path, as_bytes("x"));
  CHECK(content_of(path) == "x");
  CHECK(folder.names().size() == 1001);
}

TEST_CASE("write file: two threads on one path: one content or the other, whole") {
  const Folder folder;
  const std::string path = folder.file("a.bin");
  write_file(path, generation(0));
  const auto write_all = [&](uint64_t first) {
    for (uint64_t i = 0; i < 20; ++i) write_file(path, generation(first + i));
  };
  std::thread one(write_all, 100), two(write_all, 200);
  int torn = 0;
  for (int i = 0; i < 40; ++i) torn += whole_generation(path) < 0;
  one.join();
  two.join();
  CHECK(torn == 0);
  CHECK(whole_generation(path) % 100 == 19);
  CHECK(folder.names() == std::vector<std::string>{"a.bin"});
}

TEST_CASE("write file: killed at any moment, the file is one whole generation, the last or the one before it") {
  constexpr int kKills = 100;
  constexpr uint64_t kSeed = 1;
  CAPTURE(kSeed);
  const Folder folder;
  const std::string path = folder.file("a.bin");
  uint64_t last = 1;
  int torn = 0, backwards = 0;
  write_file(path, generation(last));
  for (int kill_number = 0; kill_number < kKills; ++kill_number) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) write_until_killed(path, last + 1);
    const auto wait = std::chrono::microseconds(uint64_t(20'000.0f * quorum::uniform_unit(kSeed, uint64_t(kill_number))));
    std::this_thread::sleep_for(wait);
    torn += whole_generation(path) < 0;  // read while it is being written
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    REQUIRE(WIFSIGNALED(status));
    const int64_t found = whole_generation(path);
    torn += found < 0;
    backwards += found < int64_t(last);
    if (found > 0) last = std::max(last, uint64_t(found));
  }
  const auto names = folder.names();
  const auto is_own = [](const std::string& name) { return name == "a.bin" || name.find("a.bin.tmp-") == 0; };
  CHECK(torn == 0);
  CHECK(backwards == 0);
  CHECK(last > 1);
  CHECK(names.size() > 1);  // some were killed half-way: their temporary files are still there
  CHECK(std::all_of(names.begin(), names.end(), is_own));
  MESSAGE(kKills << " kills, " << last << " generations, " << names.size() - 1 << " left half-way");
}
