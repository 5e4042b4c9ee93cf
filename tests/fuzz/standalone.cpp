// Runs a fuzz target without libFuzzer, the same way every time: inputs are mutations of a corpus and random bytes, drawn from the seed and
// the number of the execution alone, so that any execution can be repeated by itself.
//   fuzz_<target> <folder or file>... [-runs=N] [-seed=S] [-first=K]
// A file is run as it is; the files of folders are the corpus. Without -runs nothing is mutated.
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "quorum/core/random.hpp"
#include "tests/fuzz/fuzz_target.hpp"
#include "tests/io/io_test_support.hpp"

extern "C" __attribute__((weak)) size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed);
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace {

constexpr size_t kMaxInputBytes = 4096;

quorum::test::Mutator* current_mutator = nullptr;
unsigned long long current_execution = 0, seed = 1;

void say_where() {
  std::fprintf(stderr, "execution %llu: repeat it with -seed=%llu -first=%llu -runs=1\n", current_execution, seed, current_execution);
}
void on_signal(int number) {
  say_where();
  std::signal(number, SIG_DFL);
  std::raise(number);
}

std::string content_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

// Exactly as long a block as the input, so that the address sanitizer sees a read beyond it.
void run(const std::string& input) {
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

// The input of one execution.
std::string input_of(const std::vector<std::string>& corpus, unsigned long long execution) {
  const uint64_t key = quorum::mix_bits(seed * 0x9e3779b97f4a7c15u + execution);
  quorum::test::Mutator mutator("", uint32_t(key));
  current_mutator = &mutator;
  std::string input(kMaxInputBytes, '\0');
  if (corpus.empty() || key % 16 == 0) {
    input.resize(quorum::mix_bits(key) % 200);
    for (size_t i = 0; i < input.size(); ++i) input[i] = char(quorum::mix_bits(key + i));
    return input;
  }
  size_t size = corpus[key / 16 % corpus.size()].copy(input.data(), kMaxInputBytes);
  auto* bytes = reinterpret_cast<uint8_t*>(input.data());
  for (uint64_t i = 0, count = 1 + (key >> 32) % 4; i < count; ++i) {
    const auto own_seed = unsigned(quorum::mix_bits(key ^ i));
    size = LLVMFuzzerCustomMutator != nullptr ? LLVMFuzzerCustomMutator(bytes, size, kMaxInputBytes, own_seed)
                                              : LLVMFuzzerMutate(bytes, size, kMaxInputBytes);
  }
  input.resize(size);
  return input;
}

bool number_option(const char* argument, const char* name, unsigned long long& value) {
  const size_t length = std::strlen(name);
  if (std::strncmp(argument, name, length) != 0) return false;
  value = std::strtoull(argument + length, nullptr, 10);
  return true;
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size) {
  std::string text(reinterpret_cast<const char*>(data), size);
  current_mutator->mutate(text);
  return text.copy(reinterpret_cast<char*>(data), max_size);
}

int main(int argc, char** argv) {
  unsigned long long runs = 0, first = 0;
  std::vector<std::string> corpus;
  size_t files = 0;
  for (int i = 1; i < argc; ++i) {
    if (number_option(argv[i], "-runs=", runs) || number_option(argv[i], "-seed=", seed) || number_option(argv[i], "-first=", first))
      continue;
    if (!std::filesystem::exists(argv[i])) {
      std::fprintf(stderr, "%s: an argument must be a folder, a file, -runs=, -seed= or -first=, got '%s'\n", argv[0], argv[i]);
      return 2;
    }
    if (!std::filesystem::is_directory(argv[i])) {
      run(content_of(argv[i]));
      ++files;
      continue;
    }
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());  // folders list their files in any order
    for (const auto& path : paths) corpus.push_back(content_of(path));
  }
  std::printf("%zu files, corpus of %zu, executions %llu to %llu, seed %llu\n", files, corpus.size(), first, first + runs, seed);
  std::fflush(stdout);
  for (const int number : {SIGABRT, SIGSEGV, SIGFPE, SIGILL, SIGBUS}) std::signal(number, on_signal);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(say_where);
  for (const std::string& input : corpus) run(input);
  for (current_execution = first; current_execution < first + runs; ++current_execution) run(input_of(corpus, current_execution));
  std::printf("%llu inputs were accepted\n", quorum::fuzz::num_accepted);
  return runs >= 1000 && quorum::fuzz::num_accepted < runs / 100 ? 1 : 0;  // too few to have tested much
}
