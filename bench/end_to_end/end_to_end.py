"""Decodes a text with SmolLM2-135M, the attention of every layer computed by quorum, and says how far the logits go from dense ones.

    bash bench/run.sh end_to_end [--prompt TOKENS] [--positions COUNT] [setting ...]

The prompt is read densely, once, and cached in build/end_to_end. Then every position is decoded on the text's own tokens by all settings
in step, each with its own KV cache in f16 and its own indexes, next to a dense lane; attention runs in one thread. A setting is
name=value,...: ratio, budget, tail (drop, estimated, calibrated), samples, certificate (off, on), confidence, cluster, window, recluster, shrinkage;
the rest keeps the library's default. errors=on also compares every head's output with dense attention to the lane's own cache; the time
of that is not counted.

One JSON line a setting is appended to build/end_to_end/results.jsonl, all positions go to build/end_to_end/positions/PROMPT.
"""
import argparse
import json
import os
import subprocess
import sys
from datetime import datetime, timezone

import numpy as np

import check
import report
from divergence import Record, log_softmax, summary, worst_positions
from lane import ROOT, Lane
from model import Model
from prefill import Prompt
from progress import progress
from settings import parse

HOME = os.path.join(ROOT, "build", "end_to_end")
DEFAULT_SETTINGS = ["ratio=0.95,cluster=16", "ratio=0.9,cluster=16", "ratio=0.8,cluster=16"]
DENSE = "ratio=1"
CHECKED_POSITIONS = 4


def arguments():
    parser = argparse.ArgumentParser(prog="bench/run.sh end_to_end", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompt", type=int, default=7168, help="tokens read densely; default: 7168")
    parser.add_argument("--positions", type=int, default=1024, help="positions decoded after them; default: 1024")
    parser.add_argument("settings", nargs="*", default=DEFAULT_SETTINGS, help=f"default: {' '.join(DEFAULT_SETTINGS)}")
    options = parser.parse_args()
    for name in ("prompt", "positions"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def read_tokens(model, count):
    """The first `count` tokens and the one after them, which the last prediction has to meet."""
    if count > model.context_length:
        raise ValueError(f"end_to_end: --prompt plus --positions must be at most the model's {model.context_length}, got {count}")
    with open(os.path.join(HOME, "text.txt"), encoding="utf-8") as file:
        tokens = model.tokenizer.encode(file.read(16 * (count + 1))).ids  # a token has about 4 characters
    return np.array(tokens[:count + 1])


def fill(lanes, prompt):
    for number, lane in enumerate(lanes):
        progress("indexing, setting", number + 1, len(lanes))
        for layer in range(len(prompt.keys)):
            lane.prefill(layer, prompt.keys[layer], prompt.values[layer], prompt.queries[layer])


def decode_step(model, lanes, records, row, token, position):
    """Logits [lanes, vocabulary]. All lanes share the reading of the weights: one row each."""
    def attend(layer, queries, keys, values):
        outputs = np.empty_like(queries)
        for i, (lane, record) in enumerate(zip(lanes, records)):
            outputs[i], record.reports[row, layer], record.seconds[row, layer] = lane.decode(layer, queries[i], keys[i], values[i])
        return outputs

    return model.logits(model.run_layers([token] * len(lanes), [position] * len(lanes), attend))


def decode(model, prompt, lanes, records, tokens):
    """Fills the records; the dense lane is the first. Returns the largest relative difference of its logits from NumPy's."""
    numpy_attention, difference = check.NumpyAttention(prompt), 0.0
    first, count = len(prompt.tokens), len(records[0].kl)
    for row in range(count):
        position = first + row
        logits = decode_step(model, lanes, records, row, tokens[position], position)
        if row < CHECKED_POSITIONS:
            difference = max(difference, check.against_numpy(model, numpy_attention, tokens[position], position, logits[0]))
        log_probabilities = log_softmax(logits)
        for record, own in zip(records, log_probabilities):
            record.add(row, log_probabilities[0], own, tokens[position + 1])
        progress("decoding", row + 1, count)
    return difference


def commit():
    def git(*words):
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False).stdout.strip()
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if git("status", "--porcelain", "include") else "")


def save_positions(record, num_prompt_tokens):
    folder = os.path.join(HOME, "positions", str(num_prompt_tokens))
    os.makedirs(folder, exist_ok=True)
    np.savez_compressed(os.path.join(folder, record.setting + ".npz"), kl=record.kl, loss=record.loss, top=record.top,
                        reports=record.reports.astype(np.float32), seconds=record.seconds.astype(np.float32))


def main():
    options = arguments()
    parsed = [parse(setting) for setting in [DENSE, *options.settings]]
    model = Model(os.path.join(HOME, "model.gguf"))
    tokens = read_tokens(model, options.prompt + options.positions)
    lanes = [Lane(model.sizes, options.prompt + options.positions, setting) for setting in parsed]
    records = [Record(setting, options.positions, model.sizes) for setting in [DENSE, *options.settings]]
    prompt = Prompt.cached(model, tokens[:options.prompt], os.path.join(HOME, f"prompt_{options.prompt}.npz"))
    context = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit(), "prompt": options.prompt}
    context |= check.against_trace(prompt)
    fill(lanes, prompt)
    context["logit_difference"] = decode(model, prompt, lanes, records, tokens)

    rows = []
    for record in records:
        row = summary(record, records[0]) | context
        row["worst"] = worst_positions(record, records[0], options.prompt, tokens, lambda token: model.tokenizer.decode([int(token)]))
        rows.append(row)
        save_positions(record, options.prompt)
    with open(os.path.join(HOME, "results.jsonl"), "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[1:])
    print(report.text(context, rows))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, RuntimeError) as problem:
        sys.exit(str(problem))
