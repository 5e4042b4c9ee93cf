"""Sparse decode attention with a target ratio, as torch operators and as an attention implementation of transformers.

    import quorum_torch
    attention = quorum_torch.register(quorum_torch.SparseConfig(target_ratio=0.95))
    model.set_attn_implementation("quorum")
    model.generate(**inputs, cache=attention.new_cache(model))
    print(attention.statistics())

The operators alone need torch only: torch.ops.quorum, ClusterIndex and Decoder.
"""

from .config import SparseConfig
from .operators import REPORT_COLUMNS, ClusterIndex, Decoder, ops

__all__ = ["REPORT_COLUMNS", "ClusterIndex", "Decoder", "QuorumCache", "SparseAttention", "SparseConfig", "ops", "register"]


def __getattr__(name):
    # transformers is imported only where its adapter is used.
    if name in ("SparseAttention", "register"):
        from . import attention

        return getattr(attention, name)
    if name == "QuorumCache":
        from .cache import QuorumCache

        return QuorumCache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
