# Each header has its test: include/quorum/core/shape.hpp -> tests/core/shape_test.cpp, include/quorum/cuda/decode.cuh ->
# tests/cuda/decode_test.cu.
#   cmake -D root=<repository> -P mirror.cmake
cmake_minimum_required(VERSION 3.22)

# Headers that hold nothing to run: includes and macros.
set(without_test quorum.hpp cuda.cuh version.hpp)

file(GLOB_RECURSE headers RELATIVE "${root}/include/quorum" "${root}/include/quorum/*.hpp"
     "${root}/include/quorum/*.cuh")
set(faults "")
set(checked 0)
foreach(header IN LISTS headers)
  if(header IN_LIST without_test)
    continue()
  endif()
  math(EXPR checked "${checked} + 1")
  string(REGEX REPLACE "\\.hpp$" "_test.cpp" test "tests/${header}")
  string(REGEX REPLACE "\\.cuh$" "_test.cu" test "${test}")
  if(NOT EXISTS "${root}/${test}")
    string(APPEND faults "include/quorum/${header}: has no test ${test}\n")
  endif()
endforeach()

if(faults)
  message(FATAL_ERROR "Headers without their test:\n${faults}")
endif()
if(checked EQUAL 0)
  message(FATAL_ERROR "No header was found under ${root}/include/quorum")
endif()
message(STATUS "${checked} headers have their test")
