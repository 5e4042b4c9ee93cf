// The text of the error that a call throws.
#pragma once

#include <string>

#include "quorum/core/error.hpp"

namespace quorum::test {

// Message of the invalid_argument error that `call` throws; "no error" if it throws none, "other code: ..." if its code is another.
template <class Call>
std::string argument_error(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code() == ErrorCode::invalid_argument ? std::string(error.what()) : "other code: " + std::string(error.what());
  }
  return "no error";
}

}  // namespace quorum::test
