# Builds and runs stranger/ against quorum: installed and found (find_package), as a folder of the project (add_subdirectory), or by one
# compiler command (include_path). Arguments as in CMakeLists.txt beside this.
cmake_minimum_required(VERSION 3.22)

function(run what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE text ERROR_VARIABLE text)
  message(STATUS "${what}\n${text}")
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${way}: ${what} failed (${code})")
  endif()
endfunction()

file(REMOVE_RECURSE "${scratch}")
file(MAKE_DIRECTORY "${scratch}")

if(way STREQUAL "include_path")
  set(includes -I "${source}/include")
  foreach(folder IN LISTS eigen xsimd)
    if(NOT folder STREQUAL "/usr/include")
      list(APPEND includes -I "${folder}")
    endif()
  endforeach()
  run("one compiler command" "${compiler}" -std=c++20 -O1 ${includes} "${stranger}/main.cpp" -o "${scratch}/stranger" -pthread)
  run("the program" "${scratch}/stranger" "${version}")
  return()
endif()

if(way STREQUAL "find_package")
  run("installing" "${CMAKE_COMMAND}" --install "${build}" --prefix "${scratch}/prefix")
  # Found by its prefix alone; the source tree must not help.
  set(how "-DCMAKE_PREFIX_PATH=${scratch}/prefix" "-DQUORUM_VERSION_WANTED=${version}")
else()
  set(how "-DQUORUM_SOURCE=${source}")
endif()
run("configuring" "${CMAKE_COMMAND}" -S "${stranger}" -B "${scratch}/build" -G "${generator}" "-DCMAKE_CXX_COMPILER=${compiler}"
    -DCMAKE_CXX_FLAGS=-O1 ${how})
run("building" "${CMAKE_COMMAND}" --build "${scratch}/build")
run("the program" "${scratch}/build/stranger" "${version}")

if(way STREQUAL "find_package")
  # A version that is not there is refused, by name.
  execute_process(COMMAND "${CMAKE_COMMAND}" -S "${stranger}" -B "${scratch}/other" -G "${generator}" "-DCMAKE_CXX_COMPILER=${compiler}"
                          "-DCMAKE_PREFIX_PATH=${scratch}/prefix" -DQUORUM_VERSION_WANTED=99.0
                  RESULT_VARIABLE code OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(code EQUAL 0 OR NOT text MATCHES "version \"?99\\.0")
    message(FATAL_ERROR "find_package(quorum 99.0) should have been refused, got (${code}) ${text}")
  endif()
endif()
