"""Decode attention by PyTorch's scaled_dot_product_attention, in blocks of steps that take turns with quorum's.

    torch_attention.py PEER_QUORUM DATA [SIZE THREADS STEPS]...     one JSON object a line and type on standard output

Answers are compared before times: a way of calling it whose error against quorum's dense attention exceeds the tolerance is not timed.
"""
import json
import sys
import time

import numpy
import torch
import torch.nn.functional as functional

from quorum_process import QuorumProcess, median, settle

# f32 differs by rounding alone; bf16 keeps 8 bits of a key, a value and a query.
TYPES = {"f32": (torch.float32, 1e-3), "bf16": (torch.bfloat16, 0.05)}
BLOCKS = 4  # of PyTorch's steps, with one of quorum's before each and one behind the last
TRIALS = 5  # steps that choose the fastest way


def grouped_rows(q, k, v):
    """The heads of a group as rows of one query: no mask, so the same result, and each key is read once."""
    heads, _, d = k.shape[1:]
    return functional.scaled_dot_product_attention(q.view(1, heads, -1, d), k, v)


def enable_gqa(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


WAYS = {"grouped_rows": grouped_rows, "enable_gqa": enable_gqa}


class ColdCaches:
    """Reads more memory than the caches hold, with PyTorch's threads, which are awake afterwards."""

    def __init__(self):
        self._block = torch.ones(128 << 20 >> 2)

    def clean(self):
        return self._block.sum().item()


class Attention:
    """The cache of one workload in one type, and the queries."""

    def __init__(self, quorum, shape, dtype):
        read = lambda name, kind: numpy.fromfile(f"{quorum.folder}/{name}", dtype=kind)
        heads, d = int(shape["kv_heads"]), int(shape["head_dim"])
        self.queries = torch.from_numpy(read("queries.f32", "float32")).view(int(shape["queries"]), 1, int(shape["qo_heads"]), 1, d).to(dtype)
        self.truth = torch.from_numpy(read("dense.f32", "float32")).view(int(shape["queries"]), int(shape["qo_heads"]), d)
        self.keys, self.values = (
            torch.from_numpy(read(name, "float16")).view(1, heads, -1, d).to(dtype) for name in ("keys.f16", "values.f16"))
        self.cold = ColdCaches()

    def step(self, way, query):
        """Microseconds and output [head][dim] of one step on cold caches."""
        self.cold.clean()
        start = time.perf_counter()
        output = WAYS[way](self.queries[query], self.keys, self.values)
        seconds = time.perf_counter() - start
        return seconds * 1e6, output.view(self.truth.shape[1:]).float()

    def error(self, way, queries=4):
        errors = []
        for query in range(min(queries, len(self.queries))):
            truth = self.truth[query]
            errors.append(((self.step(way, query)[1] - truth).norm(dim=1) / truth.norm(dim=1)).mean().item())
        return sum(errors) / len(errors)


def measure(quorum, attention, name, tolerance, threads, steps):
    torch.set_num_threads(threads)
    row = {"name": name, "tolerance": tolerance}
    errors = {way: attention.error(way) for way in WAYS}
    right = [way for way in WAYS if errors[way] <= tolerance]  # NaN is not
    if not right:
        return {**row, "error_vs_dense": min(errors.values()), "error_message": "the answers differ by more than the tolerance"}
    ways = {way: median([attention.step(way, i % len(attention.queries))[0] for i in range(TRIALS)]) for way in right}
    way = min(ways, key=ways.get)
    dense, sparse, theirs = [], [], []

    def quorum_block():
        settle()
        answer = quorum.ask("steps", threads, per_block)
        dense.append(answer["dense_us"])
        sparse.append(answer["sparse_us"])
        row["quorum_sparse5_error"] = answer["sparse_error"]
        settle()

    per_block = max(1, steps // BLOCKS)
    with torch.inference_mode():
        for block in range(BLOCKS):
            quorum_block()
            attention.step(way, 0)  # in vain: the first step after the other process ran can take twice as long
            theirs += [attention.step(way, (block * per_block + i) % len(attention.queries))[0] for i in range(per_block)]
        quorum_block()
    row.update(error_vs_dense=errors[way], way=way, ways_us=ways, us=theirs, quorum_dense_us=sum(dense, []), quorum_sparse5_us=sum(sparse, []),
               quorum_dense_before_us=median(dense[0]), quorum_dense_after_us=median(dense[-1]),
               quorum_sparse5_before_us=median(sparse[0]), quorum_sparse5_after_us=median(sparse[-1]))
    return row


def main(arguments):
    program, data, *words = arguments
    jobs = [(words[i], int(words[i + 1]), int(words[i + 2])) for i in range(0, len(words), 3)]
    for size in dict.fromkeys(job[0] for job in jobs):
        with QuorumProcess(program, data) as quorum:
            print(f"torch_attention: preparing {size} ...", file=sys.stderr)
            shape = quorum.load(size)
            for kind, (dtype, tolerance) in TYPES.items():
                attention = Attention(quorum, shape, dtype)
                for _, threads, steps in (job for job in jobs if job[0] == size):
                    name = f"torch_{kind}/llama8b_{size}/threads:{threads}"
                    print(json.dumps(measure(quorum, attention, name, tolerance, threads, steps)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
