#!/usr/bin/env bash
# Checks what the kernels compiled in BUILD (preset cuda) take of a multiprocessor against resources.json beside this.
#   resources.sh BUILD
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python3 "$root/bench/cuda/resources.py" --build "$1" --table "$root/bench/cuda/resources.json" --output "$root/build/bench/cuda-resources.json"
