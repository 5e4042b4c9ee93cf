#!/usr/bin/env bash
# Fuzzes with libFuzzer and the address and undefined-behaviour sanitizers, in build/fuzz. Needs clang with its runtime.
#   bash tests/fuzz/run.sh                            every target, a million executions each
#   bash tests/fuzz/run.sh safetensors -runs=5000000  one target; the other arguments go to libFuzzer
# What is found grows in build/fuzz/corpus/<target>, never in the repository; inputs that break a target lie in build/fuzz.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
targets=()
while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
  targets+=("$1")
  shift
done
if [ ${#targets[@]} -eq 0 ]; then
  for file in tests/fuzz/*_fuzz.cpp; do targets+=("$(basename "$file" _fuzz.cpp)"); done
fi
cmake --preset fuzz --log-level=WARNING
for target in "${targets[@]}"; do cmake --build build/fuzz -j "${QUORUM_JOBS:-$(nproc)}" --target "fuzz_$target"; done
for target in "${targets[@]}"; do
  grown="build/fuzz/corpus/$target"
  mkdir -p "$grown"
  echo "fuzz: $target"
  "build/fuzz/bin/fuzz_$target" -runs=1000000 -max_len=4096 -timeout=10 -print_final_stats=1 -artifact_prefix="build/fuzz/$target-" "$@" \
    "$grown" "tests/fuzz/corpus/$target"
done
