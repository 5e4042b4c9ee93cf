#!/usr/bin/env bash
# Measures. Sets up what is missing, builds in build/bench, writes JSON there.
#   bash bench/run.sh accuracy [trace.safetensors ...]     error, bytes and hit rate of each rule -> build/bench/accuracy.json
#   bash bench/run.sh peers [--sizes 8k,32k] [--help]      quorum next to ggml, PyTorch and faiss -> build/bench/peers.json
#   bash bench/run.sh end_to_end [--help] [setting ...]    logits of a model, sparse against dense -> build/end_to_end/results.jsonl
#   bash bench/run.sh cuda [--tokens N] [--batch B]        on a machine with a GPU: the step -> build/bench/cuda.json, PyTorch's and FlashInfer's dense ones beside
#   bash bench/run.sh cuda-resources                       registers, spills, occupancy  -> build/bench/cuda-resources.json
#   bash bench/run.sh report                               a page of these JSON files              -> build/bench/report.html
#   bash bench/run.sh NAME [Google Benchmark options]      time of one operation, bench/NAME.cpp  -> build/bench/NAME.json
# Traces that are not named: those of $QUORUM_SHARED or ../shared/traces beside the checkout, else the one in examples/data.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build="$root/build/bench"

usage() { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

# build_target TARGET SETUP_ARGUMENTS...
build_target() {
  local target=$1 ggml=""
  shift
  bash "$root/cmake/setup.sh" "$@"
  [ ! -f "$root/build/peers/ggml/version" ] || ggml="$root/build/peers/ggml"
  cmake -S "$root" -B "$build" -G Ninja --log-level=WARNING -DCMAKE_BUILD_TYPE=Release \
    -DQUORUM_BUILD_TESTS=OFF -DQUORUM_BUILD_EXAMPLES=OFF -DQUORUM_BUILD_BENCH=ON \
    -DQUORUM_GGML_DIR="$ggml"
  cmake --build "$build" -j "${QUORUM_JOBS:-$(nproc)}" --target "$target"
}

# True when an argument is a trace rather than an option or its value.
names_trace() {
  local argument
  for argument in "$@"; do case "$argument" in *.safetensors) return 0 ;; esac; done
  return 1
}

accuracy() {
  local -a traces=()
  local folder
  if ! names_trace "$@"; then
    for folder in "${QUORUM_SHARED:-}" "$root/../shared/traces" "$root/examples/data"; do
      [ -n "$folder" ] && [ -d "$folder" ] || continue
      traces=("$folder"/*.safetensors)
      [ -e "${traces[0]}" ] && break
      traces=()
    done
    [ ${#traces[@]} -gt 0 ] || { echo "run.sh: no trace to measure: name one, or set QUORUM_SHARED" >&2; exit 1; }
    echo "No trace named: ${#traces[@]} from $folder"
  fi
  build_target accuracy
  exec "$build/bin/accuracy" --output "$build/accuracy.json" "$@" ${traces[@]+"${traces[@]}"}
}

peers() {
  case " $* " in *" --help "* | *" -h "*) exec python3 "$root/bench/peers/peers.py" --help ;; esac
  bash "$root/bench/peers/fetch.sh"
  build_target peer_quorum
  [ ! -f "$root/build/peers/ggml/version" ] || build_target peer_ggml
  exec python3 "$root/bench/peers/peers.py" "$@"
}

end_to_end() {
  local home="$root/build/end_to_end" program="$root/bench/end_to_end/end_to_end.py"
  case " $* " in
    *" --help "* | *" -h "*) exec python3 -c 'import ast, sys; print(ast.get_docstring(ast.parse(open(sys.argv[1]).read())))' "$program" ;;
  esac
  bash "$root/bench/end_to_end/fetch.sh"
  bash "$root/cmake/setup.sh"
  cmake -S "$root/bench/end_to_end" -B "$home/cmake" -G Ninja --log-level=WARNING
  cmake --build "$home/cmake" -j "${QUORUM_JOBS:-$(nproc)}"
  PYTHONDONTWRITEBYTECODE=1 exec "$home/venv/bin/python" "$program" "$@"
}

report() {
  command -v python3 >/dev/null 2>&1 || { echo "run.sh: the report needs python3" >&2; exit 1; }
  exec python3 "$root/bench/report/report.py" --cpu "$build/cpu.json" --peers "$build/peers.json" --accuracy "$build/accuracy.json" --output "$build/report.html" "$@"
}

cuda() {
  cmake -S "$root" -B "$root/build/gpu_bench" --log-level=WARNING -DCMAKE_BUILD_TYPE=Release -DQUORUM_BUILD_TESTS=OFF -DQUORUM_BUILD_EXAMPLES=OFF \
    -DQUORUM_CUDA_NATIVE=ON -DQUORUM_CUDA_ARCHITECTURES="${QUORUM_CUDA_ARCHITECTURES:-native}"
  cmake --build "$root/build/gpu_bench" -j "${QUORUM_JOBS:-$(nproc)}" --target bench_cuda
  mkdir -p "$build"
  "$root/build/gpu_bench/bin/bench_cuda" --json "$build/cuda.json" "$@"
  if python3 -c 'import torch' 2>/dev/null; then python3 "$root/bench/cuda/peers.py" "$build/cuda-peers.json"; else echo "PyTorch: not on this machine, its times are left out"; fi
}

cuda_resources() {
  cd "$root"
  bash cmake/setup.sh
  cmake --preset cuda --log-level=WARNING
  cmake --build build/cuda -j "${QUORUM_JOBS:-$(nproc)}" --target cuda_programs
  exec bash bench/cuda/resources.sh build/cuda
}

case "${1:-}" in
  cuda-resources) cuda_resources ;;
  cuda | peers | report | end_to_end)
    command=$1
    shift
    "$command" "$@" ;;
  accuracy)
    shift
    accuracy "$@" ;;
  -h | --help) usage ;;
  "")
    usage >&2
    exit 2 ;;
  *)
    name=$1
    shift
    if [ ! -f "$root/bench/$name.cpp" ]; then
      { echo "run.sh: unknown subcommand '$name'"; usage; } >&2
      exit 2
    fi
    build_target "bench_$name" --with bench
    exec "$build/bin/bench_$name" --benchmark_out="$build/$name.json" --benchmark_out_format=json "$@" ;;
esac
