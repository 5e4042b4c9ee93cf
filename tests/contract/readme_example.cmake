# README.md shows examples/quickstart.cpp word for word, so that the example a reader copies is the one that ctest compiles and runs.
#   cmake -D root=<repository> -P readme_example.cmake
cmake_minimum_required(VERSION 3.22)

file(READ "${root}/README.md" readme)
file(READ "${root}/examples/quickstart.cpp" example)
string(FIND "${readme}" "```cpp\n${example}```\n" position)
if(example STREQUAL "" OR position EQUAL -1)
  message(FATAL_ERROR "README.md has no ```cpp block that equals examples/quickstart.cpp: copy the file into it")
endif()
message(STATUS "README.md shows examples/quickstart.cpp as it is")
