#!/usr/bin/env bash
# An unpatched llama.cpp with and without the plug-in: conformance, divergence, a long session, speed, a question. Everything is fetched.
#   bash examples/llama_cpp/run.sh             SmolLM2-135M at 8192 tokens; three quarters of an hour on two cores, building included
#   bash examples/llama_cpp/run.sh --short     small contexts, no timing: a few minutes
#   bash examples/llama_cpp/run.sh --gemma     also the speed of Gemma 3 270M at 32000 tokens: a quarter of an hour more
# Settings (QUORUM_..., docs/llama_cpp.md) are handed on. Prints one table and writes build/llama_cpp/results.json; fails if conformance,
# the long session or the agreement at target 1 do.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
home="$root/build/llama_cpp"
model="$root/build/end_to_end/model.gguf"
text="$root/build/end_to_end/text.txt"
plugin="$home/plugin/libquorum-ggml.so"
threads=${QUORUM_JOBS:-$(nproc)}

context=8192 positions=1024 depths=0,2048,8000 turns=500 rounds=2 gemma=0 short=0
for argument in "$@"; do
  case "$argument" in
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --short) context=3072 positions=64 turns=24 short=1 ;;
    --gemma) gemma=1 ;;
    *) echo "run.sh: unknown argument '$argument' (try --help)" >&2; exit 2 ;;
  esac
done

fail() { echo "run.sh: $*" >&2; exit 1; }
say() { echo "llama_cpp: $*"; }
# with_plugin VARIABLE=VALUE ... COMMAND: what is not named keeps the user's setting.
with_plugin() { env GGML_BACKEND_PATH="$plugin" "$@"; }

build_plugin() {
  cmake -S "$here" -B "$home/plugin" -G Ninja -DLLAMA_CPP_SOURCE="$home/source/llama.cpp" -DLLAMA_CPP_BIN="$home/engine/bin" >"$home/plugin.log" 2>&1 &&
    cmake --build "$home/plugin" -j "$threads" >>"$home/plugin.log" 2>&1 || fail "the plug-in does not build ($home/plugin.log says more)"
}

conformance() {
  say "test-backend-ops at target 1 ..."
  with_plugin QUORUM_MIN_CONTEXT=0 QUORUM_TARGET_RATIO=1 "$home/plugin/test-backend-ops" -b quorum -o FLASH_ATTN_EXT >"$home/conformance.txt" 2>&1 ||
    fail "test-backend-ops fails ($home/conformance.txt says more)"
  say "conformance: $(grep -c 'FLASH_ATTN_EXT.*OK' "$home/conformance.txt") cases pass, none fails, $(grep -c 'not supported' "$home/conformance.txt") are left to the CPU backend"
}

# Logits of text decoded token by token. The reference is llama.cpp without flash attention, which sums in f32.
divergence() {
  local decode=("$home/plugin/divergence" "$model" "$text" --context "$context" --positions "$positions" --threads "$threads")
  say "divergence over $positions positions before $context ..."
  "${decode[@]}" --flash off --save "$home/logits.bin" >"$home/divergence_stock_fa_off.json" 2>>"$home/run.log"
  "${decode[@]}" --flash on --compare "$home/logits.bin" >"$home/divergence_stock_fa_on.json" 2>>"$home/run.log"
  with_plugin QUORUM_TARGET_RATIO=1 "${decode[@]}" --compare "$home/logits.bin" >"$home/divergence_target_1.json" 2>>"$home/run.log"
  rm -f "$home/statistics"
  with_plugin QUORUM_STATS_FILE="$home/statistics" "${decode[@]}" --compare "$home/logits.bin" >"$home/divergence_quorum.json" 2>>"$home/run.log"
  rm -f "$home/logits.bin"
}

long_session() {
  local cache
  for cache in unified split; do
    local live=("$home/plugin/long_session" "$model" "$text" --turns "$turns" --threads "$threads" --cache "$cache")
    say "long session of $turns turns, $cache cache ..."
    "${live[@]}" --flash off --save "$home/logits.bin" >/dev/null 2>>"$home/run.log"
    "${live[@]}" --flash on --compare "$home/logits.bin" >"$home/session_stock_$cache.json" 2>>"$home/run.log"
    with_plugin QUORUM_TARGET_RATIO=1 QUORUM_MIN_CONTEXT=256 "${live[@]}" --compare "$home/logits.bin" >"$home/session_target_1_$cache.json" 2>>"$home/run.log"
    with_plugin QUORUM_MIN_CONTEXT=256 QUORUM_DENSE_BELOW=0 "${live[@]}" --compare "$home/logits.bin" >"$home/session_quorum_$cache.json" 2>>"$home/run.log"
  done
  rm -f "$home/logits.bin"
}

# bench NAME MODEL DEPTHS ...: one round of llama-bench, appended.
bench() {
  local name=$1 file=$2 at=$3
  shift 3
  "$home/engine/bin/llama-bench" -m "$file" -t "$threads" -p 0 -n 32 -r 1 -d "$at" -o jsonl "$@" >>"$home/bench_$name.jsonl" 2>>"$home/run.log"
}
# speed PREFIX MODEL DEPTHS ROUNDS: generation behind each depth.
speed() {
  local round prefix=$1 file=$2 at=$3
  say "llama-bench of $(basename "$file"), alternating ..."
  for round in $(seq "$4"); do
    bench "${prefix}stock_fa_on" "$file" "$at" -fa on
    GGML_BACKEND_PATH="$plugin" bench "${prefix}quorum" "$file" "$at" -fa on
    bench "${prefix}stock_fa_off" "$file" "$at" -fa off
    bench "${prefix}stock_q8_0" "$file" "$at" -fa on -ctk q8_0 -ctv q8_0
  done
}
# prefill TOKENS: a prompt of so many, the index included, in rounds.
prefill() {
  local round
  say "llama-bench of a prompt of $1 tokens, alternating ..."
  for round in $(seq "$rounds"); do
    bench prefill_stock "$model" 0 -n 0 -p "$1" -fa on
    GGML_BACKEND_PATH="$plugin" bench prefill_quorum "$model" 0 -n 0 -p "$1" -fa on
  done
}

ask() {
  say "a fact early in a text of $context tokens, and a question at its end ..."
  echo "  stock:  $("$home/plugin/chat" "$model" "$text" --context "$context" --threads "$threads" 2>>"$home/run.log" | tr '\n' ' ')"
  echo "  quorum: $(with_plugin "$home/plugin/chat" "$model" "$text" --context "$context" --threads "$threads" 2>>"$home/run.log" | tr '\n' ' ')"
}

fetch=()
[ "$short" -eq 0 ] || fetch=(--short)
[ "$gemma" -eq 0 ] || fetch=(--gemma)
bash "$here/fetch.sh" "${fetch[@]}"
: >"$home/run.log"
rm -f "$home"/bench_*.jsonl
build_plugin
conformance
divergence
long_session
if [ "$short" -eq 0 ]; then
  speed "" "$model" "$depths" "$rounds"
  prefill "${depths##*,}"
fi
[ "$gemma" -eq 0 ] || speed gemma_ "$home/gemma.gguf" 0,32000 1  # most of it are the prompts
ask
python3 "$here/results.py" "$home"
