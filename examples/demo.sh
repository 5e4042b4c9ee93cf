#!/usr/bin/env bash
# Sparse against dense attention on keys, queries and values of a real model. Sets up what is missing, builds, runs:
#   bash examples/demo.sh                          the trace that comes with the repository
#   bash examples/demo.sh my.safetensors ...       your own traces
#   bash examples/demo.sh --help                   all options
# Writes build/demo/report.json and build/demo/report.html.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build="$root/build/examples"

bash "$root/cmake/setup.sh"
echo "Building decode_trace in build/examples ..."
cmake -S "$root" -B "$build" -G Ninja --log-level=WARNING -DCMAKE_BUILD_TYPE=Release \
  -DQUORUM_BUILD_TESTS=OFF -DQUORUM_BUILD_BENCH=OFF -DQUORUM_BUILD_EXAMPLES=ON
cmake --build "$build" -j "${QUORUM_JOBS:-$(nproc)}" --target decode_trace
exec "$build/bin/decode_trace" --data-dir "$root/examples/data" --output "$root/build/demo" "$@"
