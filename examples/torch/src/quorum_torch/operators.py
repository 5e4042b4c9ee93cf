"""Loads the operator library and tells torch the shapes of what each operator returns.

torch.ops.quorum.*            decode, select, attention, attend_selection, merge, mask_ranges, append
torch.classes.quorum.*        ClusterIndex, Decoder
csrc/operators.cpp has the schemas; every operator checks its tensors and raises ValueError with a rule and a value.
"""

from pathlib import Path

import torch

_LIBRARY = Path(__file__).parent / "_operators.so"
if not _LIBRARY.exists():
    raise ImportError(f"quorum_torch: {_LIBRARY.name} must be built first, with: pip install --no-build-isolation ./examples/torch")
torch.ops.load_library(str(_LIBRARY))

ops = torch.ops.quorum
ClusterIndex = torch.classes.quorum.ClusterIndex
Decoder = torch.classes.quorum.Decoder

# What the last dimension of a report tensor holds.
REPORT_COLUMNS = tuple(ops.report_columns())


def _attended(query):
    batch, num_qo_heads, rows, head_dim = query.shape
    output = query.new_empty((batch, rows, num_qo_heads, head_dim))
    return output, query.new_empty((batch, rows, num_qo_heads), dtype=torch.float32)


@torch.library.register_fake("quorum::decode")
def _(decoder, query, key, value, indexes=None, begins=None, ends=None, mask=None, causal=True):
    output, lse = _attended(query)
    return output, lse, query.new_empty((*lse.shape, len(REPORT_COLUMNS)), dtype=torch.float64)


@torch.library.register_fake("quorum::select")
def _(decoder, query, key, value, capacity, indexes=None, begins=None, ends=None, mask=None):
    batch, num_kv_heads = key.shape[:2]
    tokens = key.new_empty((batch, num_kv_heads, capacity), dtype=torch.int32)
    return tokens, key.new_empty((batch, num_kv_heads), dtype=torch.int32)


@torch.library.register_fake("quorum::attention")
def _(query, key, value, sm_scale=0.0, logit_softcap=0.0, begins=None, ends=None, mask=None, causal=True):
    return _attended(query)


@torch.library.register_fake("quorum::attend_selection")
def _(query, key, value, tokens, counts, sm_scale=0.0):
    return _attended(query)


@torch.library.register_fake("quorum::merge")
def _(output_a, lse_a, output_b, lse_b):
    return torch.empty_like(output_a), torch.empty_like(lse_a, dtype=torch.float32)


@torch.library.register_fake("quorum::mask_ranges")
def _(mask):
    return mask.new_empty((mask.shape[0], mask.shape[2], 3), dtype=torch.int64)
