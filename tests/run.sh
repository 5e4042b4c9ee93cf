#!/usr/bin/env bash
# Sets up what is missing, builds everything in build/tests and runs all tests. Extra arguments go to ctest:
#   bash tests/run.sh                   all
#   bash tests/run.sh -R core/          those whose name matches
#   bash tests/run.sh --gpu             on a machine with a GPU: the CUDA tests, compiled by nvcc in build/gpu, then once more under each tool
#                                       of compute-sanitizer if it is there. For QUORUM_CUDA_ARCHITECTURES (default: the GPU's own).
# QUORUM_SHARED names a folder of further traces (default: ../shared/traces beside the checkout, if there); the tests of them are
# skipped without it. QUORUM_JOBS limits the parallel jobs.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
jobs=${QUORUM_JOBS:-$(nproc)}

# On a machine without network, QUORUM_DEPENDENCIES names a folder whose include/ holds what its packages lack of Eigen, xsimd and doctest.
if [ -n "${QUORUM_DEPENDENCIES:-}" ]; then export CMAKE_PREFIX_PATH="$QUORUM_DEPENDENCIES${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}"; fi

gpu() {
  local build="$root/build/gpu" tool sanitizer=""
  local -a generator=()
  if command -v ninja >/dev/null 2>&1; then generator=(-G Ninja); fi
  command -v cmake >/dev/null 2>&1 || bash "$root/cmake/setup.sh"
  cmake -S "$root" -B "$build" ${generator[@]+"${generator[@]}"} -DCMAKE_BUILD_TYPE=Release -DQUORUM_BUILD_BENCH=OFF -DQUORUM_BUILD_EXAMPLES=OFF \
    -DQUORUM_CUDA_NATIVE=ON -DQUORUM_CUDA_ARCHITECTURES="${QUORUM_CUDA_ARCHITECTURES:-native}"
  cmake --build "$build" -j "$jobs" --target cuda_programs
  ctest --test-dir "$build" --output-on-failure --no-tests=error --no-label-summary -L cuda "$@"
  for sanitizer in compute-sanitizer /usr/local/cuda/bin/compute-sanitizer none; do
    if command -v "$sanitizer" >/dev/null 2>&1; then break; fi
  done
  if [ "$sanitizer" = none ]; then
    echo "compute-sanitizer: not on this machine, its checks are left out"
    return
  fi
  cd "$root"
  for tool in memcheck racecheck synccheck; do
    echo "compute-sanitizer: $tool"
    # Tests that provoke a refused call are none of memcheck's business.
    if [ "$tool" = memcheck ]; then set -- --report-api-errors no; else set --; fi
    "$sanitizer" --tool "$tool" --error-exitcode 1 "$@" "$build/bin/test_cuda"
  done
}

if [ "${1:-}" = --gpu ]; then
  shift
  gpu "$@"
  exit
fi

bash "$root/cmake/setup.sh"

if [ -z "${QUORUM_SHARED:-}" ] && [ -d "$root/../shared/traces" ]; then QUORUM_SHARED=$(cd "$root/../shared/traces" && pwd); fi
if [ -n "${QUORUM_SHARED:-}" ]; then
  [ -d "$QUORUM_SHARED" ] || { echo "run.sh: QUORUM_SHARED must name a folder of traces, got '$QUORUM_SHARED'" >&2; exit 1; }
  export QUORUM_SHARED
  echo "Further traces: $QUORUM_SHARED"
else
  echo "Further traces: none (QUORUM_SHARED is not set); the tests of them are skipped"
fi

cmake -S "$root" -B "$root/build/tests" -G Ninja -DCMAKE_BUILD_TYPE=Release -DQUORUM_BUILD_BENCH=OFF -DQUORUM_JOIN_TESTS=ON
cmake --build "$root/build/tests" -j "$jobs"
ctest --test-dir "$root/build/tests" --output-on-failure --no-tests=error --no-label-summary -j "$jobs" "$@"
