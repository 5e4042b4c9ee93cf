# How quorum's own tests, examples and benchmarks are compiled. Nothing here reaches a program that only links quorum::quorum.
include(CheckCXXCompilerFlag)

set(CMAKE_CXX_EXTENSIONS OFF)  # -std=c++20, not gnu++20

set(quorum_warning_flags "")
if(NOT MSVC)
  set(quorum_warning_flags -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
    # False alarms at -O3: "literal" + std::string (GCC bug 105651), and vectorised loops over a std::vector whose size it half knows.
    # The address sanitizer watches for the real ones.
    list(APPEND quorum_warning_flags -Wno-restrict -Wno-stringop-overflow)
  endif()
  if(QUORUM_WARNINGS_AS_ERRORS)
    list(APPEND quorum_warning_flags -Werror)
  endif()
endif()

set(quorum_processor_flags "")
if(QUORUM_NATIVE)
  check_cxx_compiler_flag(-march=native QUORUM_HAS_MARCH_NATIVE)
  if(QUORUM_HAS_MARCH_NATIVE)
    set(quorum_processor_flags -march=native)
  endif()
endif()

# nvcc, where it compiles. Not -Wpedantic: what nvcc makes of a .cu file for the host compiler is not pedantic.
set(quorum_cuda_warning_flags -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas -Wext-lambda-captures-this -Wreorder)
if(QUORUM_WARNINGS_AS_ERRORS)
  list(APPEND quorum_cuda_warning_flags -Werror=all-warnings)
endif()

add_library(quorum_own INTERFACE)
target_link_libraries(quorum_own INTERFACE quorum::quorum)
# The root, so that a program names the files of the other folders by their path: "tests/reference/...", "bench/...".
target_include_directories(quorum_own INTERFACE "${PROJECT_SOURCE_DIR}")
target_compile_options(quorum_own INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${quorum_warning_flags};${quorum_processor_flags}>")

if(QUORUM_SANITIZE)
  string(REPLACE ";" "," quorum_sanitizers "${QUORUM_SANITIZE}")
  set(quorum_sanitize_flags -fsanitize=${quorum_sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  if(QUORUM_SANITIZE MATCHES "undefined")
    # A null pointer traps by itself, sizes of objects are the address sanitizer's business, and the few virtual calls need no check of their
    # own: without these three a file of Eigen's compiles in two thirds of the time. So does one of kernels without checks of alignment, which
    # Clang makes for a third of that (preset clang); the CUDA tests keep theirs.
    list(APPEND quorum_sanitize_flags -fno-sanitize=null,object-size,vptr)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      list(APPEND quorum_sanitize_flags -fno-sanitize=alignment)
    endif()
  endif()
  target_compile_options(quorum_own INTERFACE ${quorum_sanitize_flags})
  target_link_options(quorum_own INTERFACE ${quorum_sanitize_flags})
endif()

# OpenMP serves one executor and is optional. The thread sanitizer does not see the barriers of libgomp and would report races.
if(NOT QUORUM_SANITIZE MATCHES "thread")
  find_package(OpenMP QUIET COMPONENTS CXX)
  if(TARGET OpenMP::OpenMP_CXX)
    target_link_libraries(quorum_own INTERFACE OpenMP::OpenMP_CXX)
  endif()
endif()

# quorum_add_program(name source...): one of quorum's own executables, in <build>/bin.
function(quorum_add_program name)
  add_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE quorum_own)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
endfunction()
