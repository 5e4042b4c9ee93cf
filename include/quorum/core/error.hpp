// The one error type of construction and planning. Steady-state calls never throw: they report a status.
#pragma once

#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

namespace quorum {

// What kind of rule was broken; the message names the function, the argument, the rule and the value.
enum class ErrorCode {
  invalid_argument,   // an option, shape, size or pointer the caller passed
  capacity_exceeded,  // more than a plan was sized for
  invalid_file,       // a file's content breaks its format
  io_failure,         // the operating system refused a read or a write
  cancelled,          // the caller's own callback asked to stop
  cuda_failure,       // a call of the CUDA runtime failed
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

#if !defined(__cpp_exceptions)
// What a program without exceptions (-fno-exceptions) is told of a broken rule before std::abort ends it; null: nothing. The library itself
// never prints. To be set at the start, before other threads run.
using ErrorHandler = void (*)(ErrorCode code, const char* message);
inline ErrorHandler error_handler = nullptr;
#endif

// Throws Error with "function: argument must be rule, got value". Without exceptions: see error_handler.
template <class Value>
[[noreturn]] void throw_error(ErrorCode code, const char* function, const std::string& argument, const std::string& rule,
                              const Value& value) {
  std::ostringstream message;
  message << function << ": " << argument << " must be " << rule << ", got " << value;
#if defined(__cpp_exceptions)
  throw Error(code, message.str());
#else
  if (error_handler != nullptr) error_handler(code, message.str().c_str());
  std::abort();
#endif
}

// Throws ErrorCode::invalid_argument unless `holds`.
template <class Value>
void require(bool holds, const char* function, const char* argument, const char* rule, const Value& value) {
  if (!holds) throw_error(ErrorCode::invalid_argument, function, argument, rule, value);
}

}  // namespace quorum
