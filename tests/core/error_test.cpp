// The error type and the form of its messages.
#include "quorum/core/error.hpp"

#include <doctest/doctest.h>

#include "tests/support/error_message.hpp"

using namespace quorum;

TEST_CASE("a message names function, argument, rule and value") {
  CHECK(test::argument_error([] { require(false, "decode", "head_dim", "a multiple of 8", 13); }) ==
        "decode: head_dim must be a multiple of 8, got 13");
  CHECK(test::argument_error([] { require(false, "Decoder", "options.target_ratio", "in (0, 1]", 1.5f); }) ==
        "Decoder: options.target_ratio must be in (0, 1], got 1.5");
  CHECK(test::argument_error([] { require(false, "build", "kv.keys", "not null", "null"); }) ==
        "build: kv.keys must be not null, got null");
}

TEST_CASE("a rule that holds throws nothing") {
  CHECK(test::argument_error([] { require(true, "decode", "head_dim", "a multiple of 8", 16); }) == "no error");
}

TEST_CASE("codes are kept, and an Error is a std::runtime_error") {
  for (const ErrorCode code : {ErrorCode::invalid_argument, ErrorCode::capacity_exceeded, ErrorCode::invalid_file, ErrorCode::io_failure}) {
    bool caught = false;
    try {
      throw_error(code, "open", "file", "readable", "x.npy");
    } catch (const std::runtime_error& base) {
      const auto* error = dynamic_cast<const Error*>(&base);
      caught = error != nullptr && error->code() == code && std::string(base.what()) == "open: file must be readable, got x.npy";
    }
    CHECK(caught);
  }
}
