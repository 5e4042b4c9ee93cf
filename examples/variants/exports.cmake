# A module shows its entry points and nothing else.
#   cmake -D nm=<nm> -D module=<file> -P exports.cmake
cmake_minimum_required(VERSION 3.22)
execute_process(COMMAND "${nm}" -D --defined-only "${module}" OUTPUT_VARIABLE text RESULT_VARIABLE code)
string(REGEX MATCHALL "[^ \n]+\n" names "${text}")
list(TRANSFORM names STRIP)
list(SORT names)
if(NOT code EQUAL 0 OR NOT names STREQUAL "variant_decode;variant_instruction_set")
  message(FATAL_ERROR "${module} should export variant_decode and variant_instruction_set only, got: ${names}")
endif()
