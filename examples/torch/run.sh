#!/usr/bin/env bash
# Tests the torch operators and the transformers adapter, then compares SmolLM2 at a long context: torch's dense attention and quorum.
#   bash examples/torch/run.sh             tests, speed at 8000 tokens, agreement over 1024 positions, text side by side
#   bash examples/torch/run.sh --short     the same at 3000 tokens and 64 positions, in a few minutes
#   bash examples/torch/run.sh --help      all options
# Fetches what is missing (examples/torch/fetch.sh). Prints a table and writes build/torch/results.json.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
home="$root/build/torch"

case "${1:-}" in
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
esac
bash "$root/examples/torch/fetch.sh"
case "${1:-}" in
  -h | --help) exec "$home/venv/bin/python" "$root/examples/torch/compare.py" --help ;;
esac
echo "torch: testing ..."
"$home/venv/bin/pytest" -q -p no:cacheprovider -W ignore::FutureWarning "$root/examples/torch/tests"
exec "$home/venv/bin/python" "$root/examples/torch/compare.py" --home "$home" "$@"
