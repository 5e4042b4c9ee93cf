#!/usr/bin/env bash
# Launches nvcc and keeps what ptxas -v says of each kernel beside the object file (OBJECT.ptxas), for bench/cuda/resources.py; everything
# else nvcc says is passed on.
set -uo pipefail
report=$(mktemp -u)
previous=""
for argument in "$@"; do
  [ "$previous" != -o ] || report="$argument.ptxas"
  previous=$argument
done
status=0
"$@" 2>"$report.all" || status=$?
grep -E '^ptxas info|bytes stack frame' "$report.all" >"$report" || true
grep -vE '^ptxas info|bytes stack frame' "$report.all" >&2 || true
rm -f "$report.all"
exit "$status"
