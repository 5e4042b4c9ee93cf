// The text of the error that a call throws.
#pragma once

#include <string>

#include "quorum/core/error.hpp"

namespace quorum::test {

// Message of the error of a code that `call` throws; "no error" if it throws none, "other code: ..." if its code is another.
template <class Call>
std::string error_message(ErrorCode code, Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code() == code ? std::string(error.what()) : "other code: " + std::string(error.what());
  }
  return "no error";
}
template <class Call>
std::string argument_error(Call&& call) {
  return error_message(ErrorCode::invalid_argument, call);
}

}  // namespace quorum::test
