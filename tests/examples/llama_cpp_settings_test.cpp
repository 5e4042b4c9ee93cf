#include "../../examples/llama_cpp/settings.hpp"

#include <doctest/doctest.h>

#include <map>

using quorum_ggml::read_settings;
using quorum_ggml::Settings;

namespace {

using Variables = std::map<std::string, std::string>;

Settings settings_of(const Variables& variables) {
  return read_settings([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

// The message of the refusal, or nothing if the variables are accepted.
std::string refusal(const Variables& variables) {
  try {
    settings_of(variables);
  } catch (const quorum::Error& error) {
    CHECK(error.code() == quorum::ErrorCode::invalid_argument);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("plug-in settings: defaults, also of empty variables") {
  for (const Variables& variables : {Variables{}, Variables{{"QUORUM_TARGET_ERROR", ""}, {"QUORUM_TAIL", ""}}}) {
    const Settings settings = settings_of(variables);
    CHECK(settings.decode.target_error == 0.015f);
    CHECK_FALSE(settings.decode.certificate.enabled);
    CHECK(settings.min_context == 1024);
    CHECK(settings.threads == 0);
    CHECK(settings.stats_file.empty());
  }
}

TEST_CASE("plug-in settings: every variable") {
  const Settings settings = settings_of({{"QUORUM_TARGET_RATIO", "0.95"},
                                         {"QUORUM_TAIL", "drop"},
                                         {"QUORUM_CERTIFICATE", "dense"},
                                         {"QUORUM_CONFIDENCE", "0.99"},
                                         {"QUORUM_DENSE_BELOW", "100"},
                                         {"QUORUM_MIN_CONTEXT", "0"},
                                         {"QUORUM_MAX_ROWS", "4"},
                                         {"QUORUM_THREADS", "3"},
                                         {"QUORUM_SINK_TOKENS", "8"},
                                         {"QUORUM_WINDOW_TOKENS", "128"},
                                         {"QUORUM_STATS_FILE", "-"}});
  CHECK(settings.decode.target_error == 0.0f);
  CHECK(settings.decode.target_ratio == 0.95f);
  CHECK(settings.decode.tail == quorum::Tail::drop);
  CHECK(settings.decode.certificate.enabled);
  CHECK(settings.decode.certificate.policy == quorum::MissPolicy::dense);
  CHECK(settings.decode.certificate.confidence == 0.99f);
  CHECK(settings.decode.dense_below == 100);
  CHECK(settings.min_context == 0);
  CHECK(settings.max_rows == 4);
  CHECK(settings.threads == 3);
  CHECK(settings.index.num_sink_tokens == 8);
  CHECK(settings.index.window_tokens == 128);
  CHECK(settings.stats_file == "-");
  CHECK(settings_of({{"QUORUM_TARGET_ERROR", "0.05"}}).decode.target_error == 0.05f);
}

TEST_CASE("plug-in settings: what is refused, and in which words") {
  CHECK(refusal({{"QUORUM_TARGET_RATIO", "1.5"}}) == "settings: QUORUM_TARGET_RATIO must be a number from 0.01 to 1, got '1.5'");
  CHECK(refusal({{"QUORUM_TARGET_RATIO", "nan"}}) == "settings: QUORUM_TARGET_RATIO must be a number from 0.01 to 1, got 'nan'");
  CHECK(refusal({{"QUORUM_THREADS", "2 "}}) == "settings: QUORUM_THREADS must be a number from 0 to 1024, got '2 '");
  CHECK(refusal({{"QUORUM_THREADS", "two"}}) == "settings: QUORUM_THREADS must be a number from 0 to 1024, got 'two'");
  CHECK(refusal({{"QUORUM_TAIL", "cut"}}) == "settings: QUORUM_TAIL must be one of drop estimated calibrated, got 'cut'");
  CHECK(refusal({{"QUORUM_CERTIFICATE", "widen"}}) == "settings: QUORUM_CERTIFICATE must be off without QUORUM_TARGET_RATIO, got 'widen'");
  CHECK(refusal({{"QUORUM_TARGET_RATIO", "0.9"}, {"QUORUM_TARGET_ERROR", "0.1"}}) ==
        "settings: QUORUM_TARGET_ERROR must be unset with QUORUM_TARGET_RATIO, got '0.1'");
}
