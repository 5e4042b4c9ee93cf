#include "../../examples/decode_trace/options.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>

#include "quorum/core/error.hpp"

using decode_trace::default_trace;
using decode_trace::Options;
using decode_trace::parse_options;

namespace {

// The message of the refusal, or nothing if the arguments are accepted.
std::string refusal(const std::vector<std::string>& arguments) {
  try {
    parse_options(arguments);
  } catch (const quorum::Error& error) {
    CHECK(error.code() == quorum::ErrorCode::invalid_argument);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("options: defaults") {
  const Options options = parse_options({});
  CHECK(options.traces.empty());
  CHECK(options.targets == std::vector<double>{0.5, 0.8, 0.9, 0.95});
  CHECK(options.tail == quorum::Tail::calibrated);
  CHECK_FALSE(options.certify);
  CHECK(options.threads >= 1);
  CHECK(options.cluster_size == quorum::IndexOptions{}.cluster_size);
  CHECK(options.unit == quorum::ReadUnit::automatic);
  CHECK_FALSE(options.by_error);
  CHECK(options.seed == 1);
  CHECK(options.output == "build/demo");
  CHECK_FALSE(options.help);
}

TEST_CASE("options: every option, both spellings") {
  const Options options =
      parse_options({"a.safetensors", "--target", "0.9,0.5", "--tail=drop", "--certify", "--threads", "3", "--cluster-size=48", "--seed",
                     "18446744073709551615", "--output", "out", "--data-dir=data", "b.safetensors", "--", "--odd.safetensors"});
  CHECK(options.traces == std::vector<std::string>{"a.safetensors", "b.safetensors", "--odd.safetensors"});
  CHECK(options.targets == std::vector<double>{0.5, 0.9});
  CHECK(options.tail == quorum::Tail::drop);
  CHECK(options.certify);
  CHECK(options.threads == 3);
  CHECK(options.cluster_size == 48);
  CHECK(options.seed == 18446744073709551615u);
  CHECK(options.output == "out");
  CHECK(options.data_dir == "data");
  CHECK(parse_options({"--tail", "estimated"}).tail == quorum::Tail::estimated);
  CHECK(parse_options({"--target=1"}).targets == std::vector<double>{1.0});
  CHECK(parse_options({"--seed", "1", "--seed", "2"}).seed == 2);
  CHECK(parse_options({"--unit", "clusters"}).unit == quorum::ReadUnit::clusters);
  CHECK(parse_options({"--unit=tokens"}).unit == quorum::ReadUnit::tokens);
  CHECK(parse_options({"--target-error", "0.05,0.03"}).targets == std::vector<double>{0.03, 0.05});
  CHECK(parse_options({"--target-error=0.05"}).by_error);
  CHECK(parse_options({"--help"}).help);
  CHECK(parse_options({"-h"}).help);
}

TEST_CASE("options: the help names every option") {
  for (const char* name : {"--target LIST", "--target-error", "--unit", "--tail", "--certify", "--threads", "--cluster-size", "--seed",
                           "--output", "--data-dir", "--help"}) {
    CHECK(decode_trace::help_text().find(name) != std::string::npos);
  }
}

TEST_CASE("options: wrong values are refused with option, rule and value") {
  const std::string target_rule = "decode_trace: --target must be numbers above 0 and up to 1, separated by commas, got ";
  for (const std::string value : {"0", "1.01", "-0.5", "nan", "inf", "0.9x", "", "0.5,,0.9", "0.9,", "0x1p-1", " 0.9", "1e-400"}) {
    CHECK(refusal({"--target=" + value}) == target_rule + "'" + value + "'");
  }
  CHECK(refusal({"--target", "0.9,0.90"}) == "decode_trace: --target must be different numbers, got '0.9,0.90'");
  CHECK(refusal({"--target", "1,.1,.2,.3,.4,.5,.6,.7,.8,.9,.91,.92,.93,.94,.95,.96,.97"})
            .starts_with("decode_trace: --target must be at most 16"));
  CHECK(refusal({"--target-error", "1"}) ==
        "decode_trace: --target-error must be numbers above 0 and below 1, separated by commas, got '1'");
  CHECK(refusal({"--target-error=0.1", "--target=0.9"}) == "decode_trace: --target-error must be given without --target, got 'both'");
  CHECK(refusal({"--target-error=0.1", "--unit=clusters"}) ==
        "decode_trace: --target-error must be given without --unit clusters, got 'both'");
  CHECK(refusal({"--certify", "--target-error=0.1"}) == "decode_trace: --target-error must be given without --certify, got 'both'");
  CHECK(refusal({"--unit", "token"}) == "decode_trace: --unit must be clusters, tokens or automatic, got 'token'");
  CHECK(refusal({"--tail", "Drop"}) == "decode_trace: --tail must be drop, estimated or calibrated, got 'Drop'");
  for (const std::string value : {"0", "1025", "-1", "2.0", "x", "", "99999999999"}) {
    CHECK(refusal({"--threads=" + value}) == "decode_trace: --threads must be a whole number from 1 to 1024, got '" + value + "'");
    CHECK(refusal({"--cluster-size=" + value}) ==
          "decode_trace: --cluster-size must be a whole number from 1 to 1024, got '" + value + "'");
  }
  for (const std::string value : {"-1", "1.5", "18446744073709551616", ""}) {
    CHECK(refusal({"--seed=" + value}) ==
          "decode_trace: --seed must be a whole number from 0 to 18446744073709551615, got '" + value + "'");
  }
  CHECK(refusal({"--output="}) == "decode_trace: --output must be the name of a folder, got ''");
  CHECK(refusal({"--data-dir="}) == "decode_trace: --data-dir must be the name of a folder, got ''");
}

TEST_CASE("options: what is no option, has no value or takes none") {
  CHECK(refusal({"--targets", "0.9"}) == "decode_trace: option must be one that --help lists, got '--targets'");
  CHECK(refusal({"-x"}) == "decode_trace: option must be one that --help lists, got '-x'");
  CHECK(refusal({"-"}) == "decode_trace: option must be one that --help lists, got '-'");
  CHECK(refusal({"--output"}) == "decode_trace: --output must be followed by a value, got ''");
  CHECK(refusal({"--output", "--certify"}) == "decode_trace: --output must be followed by a value, got '--certify'");
  CHECK(refusal({"--certify=yes"}) == "decode_trace: --certify must be given without a value, got '--certify=yes'");
  CHECK(refusal({""}) == "decode_trace: trace must be the name of a file, got ''");
}

TEST_CASE("options: the repository's trace is looked for in the folder that is named") {
  const auto folder = std::filesystem::temp_directory_path() / "quorum_options_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  Options options;
  options.data_dir = folder.string();
  std::string message;
  try {
    default_trace(options);
  } catch (const quorum::Error& error) {
    CHECK(error.code() == quorum::ErrorCode::io_failure);
    message = error.what();
  }
  CHECK(message == "decode_trace: trace must be named, or smollm2_135m_kjv_8k_layer12.safetensors must lie in '" + folder.string() +
                       "', got no such file");
  const auto trace = folder / "smollm2_135m_kjv_8k_layer12.safetensors";
  std::ofstream(trace) << "x";
  CHECK(default_trace(options) == trace.string());
  std::filesystem::remove_all(folder);
}
