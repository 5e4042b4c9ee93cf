# The page of made-up results holds every chart; with a file or with benchmarks missing it says so; with nothing there is no page.
#   cmake -D python=<python3> -D root=<repository> -D scratch=<folder> -P report_test.cmake
cmake_minimum_required(VERSION 3.22)

set(samples "${root}/tests/bench/report")
file(REMOVE_RECURSE "${scratch}")
file(MAKE_DIRECTORY "${scratch}")

set(accuracy "${samples}/accuracy.json")
# make_page(name cpu peers): the page in ${page}, the exit status in ${status}.
function(make_page name cpu peers)
  execute_process(COMMAND "${CMAKE_COMMAND}" -E env PYTHONDONTWRITEBYTECODE=1 "${python}" "${root}/bench/report/report.py" --cpu "${cpu}"
                          --peers "${peers}" --accuracy "${accuracy}" --output "${scratch}/${name}.html"
                  RESULT_VARIABLE status OUTPUT_QUIET ERROR_VARIABLE problem)
  set(page "")
  if(EXISTS "${scratch}/${name}.html")
    file(READ "${scratch}/${name}.html" page)
  endif()
  set(status "${status}" PARENT_SCOPE)
  set(problem "${problem}" PARENT_SCOPE)
  set(page "${page}" PARENT_SCOPE)
endfunction()

function(expect text)
  string(FIND "${page}" "${text}" at)
  if(NOT status EQUAL 0 OR at EQUAL -1)
    message(SEND_ERROR "expected the page to hold: ${text}\n${problem}")
  endif()
endfunction()

function(expect_not text)
  string(FIND "${page}" "${text}" at)
  if(NOT at EQUAL -1)
    message(SEND_ERROR "the page must not hold: ${text}")
  endif()
endfunction()

make_page(full "${samples}/cpu.json" "${samples}/peers.json")
foreach(text "Time against length" "5 % of the tokens, 32K tokens: 900 µs" "23.3×" "the answers differ by more than the tolerance" "11.70"
             "83 %" "quorum codes, 5 % error: 3.2 % of dense bytes" "mean output error, %" "Share of each stage" "score: 22 %" "1M tokens: 24K" "a &lt;made up&gt; processor" "26.8 GB/s")
  expect("${text}")
endforeach()
foreach(text "http:" "https:" "<script" "nan")
  expect_not("${text}")
endforeach()

make_page(without_peers "${samples}/cpu.json" "${scratch}/none.json")
expect("none.json is not there")
expect("Share of each stage")

make_page(without_cpu "${scratch}/none.json" "${samples}/peers.json")
expect("none.json is not there")
expect("23.3×")

file(WRITE "${scratch}/empty.json" "{\"context\": {}, \"benchmarks\": []}")
make_page(empty_cpu "${scratch}/empty.json" "${samples}/peers.json")
expect("empty.json has no benchmark named growth/")

set(accuracy "${scratch}/none.json")
make_page(without_accuracy "${samples}/cpu.json" "${samples}/peers.json")
expect("none.json: FileNotFoundError")

make_page(nothing "${scratch}/none.json" "${scratch}/none.json")
if(status EQUAL 0 OR page)
  message(SEND_ERROR "without any results there must be no page")
endif()
