"""SmolLM2 at a long context through transformers: torch's dense attention and quorum's sparse decoding, on the same cache contents.

The prompt is read once. Every lane starts from a copy of its keys and values; lanes take turns, so that a slow minute of the machine
meets all of them. Agreement is teacher-forced: token by token on the text's own tokens, against dense logits of the same positions.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, StaticCache
from transformers.utils import logging

import quorum_torch


def parse_arguments():
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("build/torch"), help=argparse.SUPPRESS)
    parser.add_argument("--short", action="store_true", help="3000 tokens and 64 positions unless said otherwise")
    parser.add_argument("--context", type=int, help="tokens of the prompt for speed (8000)")
    parser.add_argument("--positions", type=int, help="positions for agreement, behind a prompt that leaves room for them (1024)")
    parser.add_argument("--steps", type=int, help="tokens of each lane in a round (16)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of lanes taking turns (3)")
    parser.add_argument("--target-ratio", type=float, default=0.9)
    parser.add_argument("--target-error", type=float, default=0.0, help="instead of a ratio")
    parser.add_argument("--sample-every", type=int, default=0, help="prompt queries that feed the index's metric: one in so many, 0: none")
    parser.add_argument("--type", choices=["float32", "bfloat16"], default="float32", help="of weights and cache")
    parser.add_argument("--parts", nargs="+", choices=["agreement", "speed", "beams"], default=["agreement", "speed", "beams"])
    arguments = parser.parse_args()
    defaults = (3000, 64, 8) if arguments.short else (8000, 1024, 16)
    for name, value in zip(("context", "positions", "steps"), defaults, strict=True):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


class Comparison:
    def __init__(self, arguments):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        self.arguments = arguments
        folder = arguments.home / "model"
        dtype = getattr(torch, arguments.type)
        self.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
        config = quorum_torch.SparseConfig(
            target_ratio=arguments.target_ratio, target_error=arguments.target_error, sample_every=arguments.sample_every
        )
        self.attention = quorum_torch.register(config)
        longest = self.model.config.max_position_embeddings
        if arguments.context + (arguments.steps + 1) * arguments.rounds > longest or arguments.positions + 1 >= longest:
            raise SystemExit(f"run.sh: context, steps and positions must fit into the model's {longest} tokens")
        text = (arguments.home / "text.txt").read_text()[: 6 * longest]
        self.ids = self.tokenizer(text, return_tensors="pt").input_ids[:, :longest]
        self.prompt = self._prefill(arguments.context if arguments.parts != ["agreement"] else longest - arguments.positions)

    def forward(self, implementation, ids, cache, keep=1):
        self.model.set_attn_implementation(implementation)
        return self.model(ids, cache=cache, use_cache=True, logits_to_keep=keep).logits

    def _prefill(self, tokens):
        """A QuorumCache with the first tokens of the text; its attention is torch's, its queries are sampled on the way."""
        print(f"Reading {tokens} tokens ...", flush=True)
        cache = self.attention.new_cache(self.model)
        self.seconds_of_prompt = seconds(lambda: self.forward("quorum", self.ids[:, :tokens], cache))
        return cache

    def cache(self, kind, room=0):
        """A copy of the prompt's keys and values in another kind of cache."""
        if kind == "quorum":
            return copy.deepcopy(self.prompt)
        if kind == "dynamic":
            return DynamicCache([(layer.keys.clone(), layer.values.clone()) for layer in self.prompt.layers])
        cache = StaticCache(config=self.model.config, max_cache_len=self.prompt.get_seq_length() + room)
        for number, layer in enumerate(self.prompt.layers):
            cache.update(layer.keys, layer.values, number)
        return cache

    def agreement(self):
        """KL divergence of sparse from dense logits, and how often both prefer the same token."""
        count = self.arguments.positions
        cache = self.cache("quorum")
        first = len(self.ids[0]) - count
        cache.crop(first - cache.get_seq_length()) if first < cache.get_seq_length() else None
        ids = self.ids[:, cache.get_seq_length() :][:, :count]
        print(f"Decoding {count} positions behind {cache.get_seq_length()} tokens ...", flush=True)
        dense = self.forward("sdpa", ids, copy.deepcopy(cache), keep=count)[0].float().log_softmax(-1)
        self.attention.reset_statistics()
        divergences, same, losses = [], 0, []
        for position in range(count):
            sparse = self.forward("quorum", ids[:, position : position + 1], cache)[0, -1].float().log_softmax(-1)
            divergences.append(float((dense[position].exp() * (dense[position] - sparse)).sum()))
            same += int(dense[position].argmax() == sparse.argmax())
            if position + 1 < count:
                losses.append((float(dense[position, ids[0, position + 1]]), float(sparse[ids[0, position + 1]])))
        divergences.sort()
        perplexity = [float(torch.tensor([loss[i] for loss in losses]).mean().neg().exp()) for i in (0, 1)]
        result = {"positions": count, "kl_mean": statistics.fmean(divergences), "kl_p99": divergences[int(0.99 * (count - 1))]}
        result |= {"top1": same / count, "perplexity": {"dense": perplexity[0], "quorum": perplexity[1]}}
        return result | {"statistics": self.attention.statistics()}

    def speed(self):
        """Tokens a second of each lane, greedy decoding, and the texts."""
        room = (self.arguments.steps + 1) * self.arguments.rounds + 1
        kinds = {"sdpa, DynamicCache": "dynamic", "sdpa, StaticCache": "static", "quorum, QuorumCache": "quorum", "quorum, DynamicCache": "dynamic"}
        lanes = {name: Lane(self, name.split(",")[0], self.cache(kind, room)) for name, kind in kinds.items()}
        following = self.ids[:, self.prompt.get_seq_length() :][:, :1]
        self.attention.reset_statistics()
        for lane in lanes.values():
            lane.start(following)
        for _ in range(self.arguments.rounds):
            for name, lane in lanes.items():
                lane.decode(self.arguments.steps)
        result = {"tokens_per_second": {name: 1.0 / statistics.fmean(lane.times) for name, lane in lanes.items()}}
        result["tokens_per_second_median"] = {name: 1.0 / statistics.median(lane.times) for name, lane in lanes.items()}
        result["seconds"] = {"prompt": self.seconds_of_prompt, "first step, index included": lanes["quorum, QuorumCache"].first}
        result["text"] = {name: self.tokenizer.decode(lane.tokens) for name, lane in lanes.items()}
        keys, index = lanes["quorum, QuorumCache"].cache.bytes()
        return result | {"bytes": {"keys and values": keys, "index": index}, "statistics": self.attention.statistics()}

    def beams(self, beams=4, steps=4):
        """Seconds of a step with four beams on the prompt, reordered at every step, after a first one."""
        result = {}
        for name, kind in {"sdpa, DynamicCache": "dynamic", "quorum, QuorumCache": "quorum"}.items():
            cache = self.cache(kind)
            cache.batch_repeat_interleave(beams)
            tokens = self.ids[:, -beams:].T
            times = []
            for step in range(steps + 1):
                implementation = name.split(",")[0]
                times.append(seconds(lambda: self.forward(implementation, tokens, cache)))  # noqa: B023
                order = torch.tensor([0, 0, 1, 2]) if step % 2 else torch.tensor([1, 0, 3, 3])
                times[-1] += seconds(lambda: cache.reorder_cache(order))  # noqa: B023
            result[name] = statistics.fmean(times[1:])
        return {"seconds_per_step": result}

    def run(self):
        return {part: getattr(self, part)() for part in self.arguments.parts}


class Lane:
    """One way of decoding, going on from its own cache."""

    def __init__(self, comparison, implementation, cache):
        self.comparison, self.implementation, self.cache = comparison, implementation, cache
        self.times, self.tokens = [], []

    def start(self, token):
        self.token = token
        self.first = seconds(self._step)

    def decode(self, steps):
        self._step()  # the caches of the processor belong to the lane before
        self.times += [seconds(self._step) for _ in range(steps)]

    def _step(self):
        self.token = self.comparison.forward(self.implementation, self.token, self.cache)[:, -1:].argmax(-1)
        self.tokens.append(int(self.token))


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def print_report(result, arguments):
    target = f"target error {arguments.target_error}" if arguments.target_error else f"target ratio {arguments.target_ratio}"
    print(f"\nSmolLM2-135M, {arguments.type}, {torch.get_num_threads()} threads, {target}")
    if "agreement" in result:
        part = result["agreement"]
        stats = part["statistics"]
        print(f"  {part['positions']} positions: KL mean {part['kl_mean']:.4f}, 99 % {part['kl_p99']:.3f}; top-1 agreement {part['top1']:.3f}")
        print(f"  perplexity dense {part['perplexity']['dense']:.3f}, quorum {part['perplexity']['quorum']:.3f}")
        print(f"  read {100 * stats['tokens_read_share']:.1f} % of the tokens, {100 * stats['bytes_read_share']:.1f} % of the bytes")
        print(f"  attained ratio, the library's own estimate: {stats['attained_ratio']:.3f}")
    if "speed" in result:
        part = result["speed"]
        best = max(rate for name, rate in part["tokens_per_second"].items() if name.startswith("sdpa"))
        print(f"  {'at ' + str(arguments.context) + ' tokens':<24}{'tokens/s':>10}{'median':>10}{'of best sdpa':>15}")
        for name, rate in part["tokens_per_second"].items():
            print(f"  {name:<24}{rate:>10.1f}{part['tokens_per_second_median'][name]:>10.1f}{rate / best:>14.2f}x")
        print(f"  prompt {part['seconds']['prompt']:.1f} s, first step with the index {part['seconds']['first step, index included']:.2f} s")
        print(f"  keys and values {part['bytes']['keys and values'] / 2**20:.0f} MiB, index {part['bytes']['index'] / 2**20:.0f} MiB")
    if "beams" in result:
        times = result["beams"]["seconds_per_step"]
        print("  four beams, a step: " + ", ".join(f"{name} {1e3 * each:.0f} ms" for name, each in times.items()))
    if "speed" in result:
        for name in ("sdpa, DynamicCache", "quorum, QuorumCache"):
            print(f"  {name}: {' '.join(result['speed']['text'][name].split())}")


@torch.inference_mode()
def main():
    arguments = parse_arguments()
    result = Comparison(arguments).run()
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    settings = {name: value for name, value in vars(arguments).items() if name != "home"}
    file = arguments.home / "results.json"
    file.write_text(json.dumps({"machine": machine, "settings": settings} | result, indent=1))
    print_report(result, arguments)
    print(f"  written: {file}")


if __name__ == "__main__":
    main()
