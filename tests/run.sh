#!/usr/bin/env bash
# Sets up what is missing, builds everything in build/tests and runs all tests. Extra arguments go to ctest:
#   bash tests/run.sh                   all
#   bash tests/run.sh -R core/          those whose name matches
# QUORUM_SHARED names a folder of further traces (default: ../shared/traces beside the checkout, if there); the tests of them are
# skipped without it. QUORUM_JOBS limits the parallel jobs.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
jobs=${QUORUM_JOBS:-$(nproc)}

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
