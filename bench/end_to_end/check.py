"""Checks of the forward pass before anything is measured: against a recorded trace, and NumPy's attention against quorum's dense path."""
import json
import os
import struct

import numpy as np

from lane import ROOT
from prefill import attend_causally

TRACE = os.path.join(ROOT, "examples", "data", "smollm2_135m_kjv_8k_layer12.safetensors")
TRACE_LAYER = 12
# The trace's forward pass rounds elsewhere; its f16 rows alone differ by 5e-4.
TRACE_TOLERANCE = 5e-3
# 30 layers whose sums run in another order, so that now and then a key or value rounds to the next f16.
LOGIT_TOLERANCE = 1e-3


def recorded(name):
    with open(TRACE, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start = file.tell()
        begin, end = header[name]["data_offsets"]
        file.seek(start + begin)
        return np.frombuffer(file.read(end - begin), np.float16).reshape(header[name]["shape"]).astype(np.float32)


def relative_difference(rows, reference):
    return float(np.linalg.norm(rows - reference) / np.linalg.norm(reference))


def within(name, difference, tolerance):
    if not difference <= tolerance:
        raise RuntimeError(f"check: {name} must be within {tolerance:g}, got {difference:.3g}")
    return difference


def against_trace(prompt):
    """Relative differences of the prompt's keys and values, over all its tokens, from those that another engine recorded."""
    keys, values = (rows[TRACE_LAYER].astype(np.float32) for rows in (prompt.keys, prompt.values))
    # The trace keeps the two halves of a row apart that RoPE pairs, a GGUF puts the partners side by side.
    keys = np.concatenate([keys[..., 0::2], keys[..., 1::2]], axis=-1)
    count = len(keys)
    return {f"trace_{name}": within(f"{name} against the trace", relative_difference(rows, recorded(name)[:count]), TRACE_TOLERANCE)
            for name, rows in (("keys", keys), ("values", values))}


class NumpyAttention:
    """attend() of Model.run_layers for one token at a time, dense, over a cache in f16 like a lane's."""

    def __init__(self, prompt):
        self._caches = [(keys, values) for keys, values in zip(prompt.keys, prompt.values)]

    def __call__(self, layer, queries, keys, values):
        cached = tuple(np.concatenate([old, new.astype(np.float16)]) for old, new in zip(self._caches[layer], (keys, values)))
        self._caches[layer] = cached
        return attend_causally(queries, *cached)


def against_numpy(model, attention, token, position, logits):
    """Relative difference of one position's logits [vocabulary] from those with NumPy's attention."""
    expected = model.logits(model.run_layers([token], [position], attention))[0]
    return within("logits of the dense lane against NumPy's", relative_difference(logits, expected), LOGIT_TOLERANCE)
