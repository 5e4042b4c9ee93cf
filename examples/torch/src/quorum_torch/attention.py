"""The attention function of transformers: torch's dense attention for prompts and short contexts, sparse decoding beyond."""

import collections

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .cache import QuorumCache
from .config import SparseConfig
from .follow import Follower
from .operators import Decoder, ops


class Visible:
    """What the rows of a call see. begins, ends: lists, a token each for every row of the batch; mask: None where they say it all."""

    def __init__(self, mask, batch, rows, tokens):
        self.mask = None
        self.begins, self.ends = [0] * batch, [tokens] * batch
        self.length = tokens
        if mask is not None:
            self._read(mask.expand(batch, -1, -1, -1), rows)
        self.ends_tensor = None if mask is None else torch.tensor(self.ends)

    def _read(self, mask, rows):
        ranges = ops.mask_ranges(mask)
        begin, end, count = ranges.unbind(2)
        self.begins, self.ends = begin[:, -1].tolist(), end[:, -1].tolist()
        self.length = max(self.ends)
        # Row r of a causal call ends rows - 1 - r tokens before the last.
        causal = end == end[:, -1:] - torch.arange(rows - 1, -1, -1)
        if not bool((causal & (count == end - begin) & (begin == begin[:, -1:]) & (count > 0)).all()):
            self.mask = mask
            self.begins, self.ends = [0] * len(self.begins), [self.length] * len(self.begins)


class SparseAttention:
    """What register() puts into transformers. statistics() tells what its steps have read."""

    def __init__(self, config, name):
        self.config = config
        self.name = name
        self._decoders = {}
        self._follower = Follower(config)
        self._dense_calls = collections.Counter()
        self._last_mask = (None, None)

    def new_cache(self, model):
        """An empty cache for generate(cache=...): grows in place, shares what beams begin with."""
        return QuorumCache(self, model.config.get_text_config(decoder=True))

    def shares(self, length, batch):
        """Whether a layer of the cache should look for rows that begin alike."""
        return self.config.share_prefix and batch > 1 and length >= self.config.min_context

    @torch.compiler.disable
    def forward(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        """As transformers calls it: query [batch, qo_head, row, head_dim], key and value not repeated. Returns ([batch, row, qo_head,
        head_dim], None)."""
        layer = getattr(key, "quorum_layer", None)
        reason = _unsupported_reason(module, query, key, value, attention_mask, dropout, kwargs)
        if reason is None:
            visible = self._visible(attention_mask, query, key, layer)
            indexes = self._indexes(module, layer, key, visible.length - query.shape[2], visible.length)
            reason = self._dense_reason(query.shape[2], visible)
            if reason is None:
                return self._decode(query, key, value, layer, indexes, visible, scaling), None
            indexes.sample(query, visible.length - query.shape[2])
        self._dense_calls[reason] += 1
        if layer is not None and layer.prefix is not None:
            layer.unshare()
            key, value = layer.keys, layer.values
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)

    def statistics(self):
        """Sums over all sparse calls since the last reset, and means; `dense_calls` says how often, and why, torch's attention ran."""
        totals = collections.Counter()
        for decoder in self._decoders.values():
            totals.update(decoder.statistics())
        stats = dict(totals)
        heads = totals["heads"] or 1
        for name in ("attained_ratio", "attained_ratio_lower_bound", "error_estimate"):
            stats[name] = totals[name] / heads
        stats["tokens_read_share"] = totals["tokens_read"] / (totals["tokens_visible"] or 1)
        stats["bytes_read_share"] = totals["bytes_read"] / (totals["bytes_dense"] or 1)
        stats["dense_calls"] = dict(self._dense_calls)
        return stats

    def reset_statistics(self):
        self._dense_calls.clear()
        for decoder in self._decoders.values():
            decoder.reset_statistics()

    def forget(self):
        """Drops the indexes of caches that are not QuorumCaches."""
        self._follower.forget()

    def _visible(self, mask, query, key, layer):
        tokens = layer.length if layer is not None else key.shape[2]
        if mask is None:
            # A prompt that fills a StaticCache from its start comes without a mask: the rest of the keys is not there yet.
            prompt = layer is None and 1 < query.shape[2] < tokens
            return Visible(None, query.shape[0], query.shape[2], query.shape[2] if prompt else tokens)
        # All layers of a step are given the same mask.
        if self._last_mask[0] is not mask:
            self._last_mask = (mask, Visible(mask, query.shape[0], query.shape[2], tokens))
        return self._last_mask[1]

    def _indexes(self, module, layer, key, before, length):
        if layer is not None:
            return layer.indexes
        return self._follower.indexes(module, key, before, length)

    def _dense_reason(self, rows, visible):
        if visible.length < self.config.min_context:
            return "context below min_context"
        if rows > self.config.max_rows:
            return "prompt: more rows than max_rows"
        return None

    def _decode(self, query, key, value, layer, indexes, visible, scaling):
        scale = float(scaling) if scaling is not None else 0.0
        decoder = self._decoder(query, key, scale)
        if layer is not None and layer.prefix is not None:
            if visible.mask is None and layer.prefix.begin_alike(visible.begins):
                return layer.prefix.decode(decoder, query, key, value, indexes, visible.begins, scale)[0]
            layer.unshare()
            key, value, indexes = layer.keys, layer.values, layer.indexes
        indexes.follow(key, value, visible.begins, visible.ends, scale)
        mask = visible.mask
        if mask is None and indexes.begins != visible.begins:
            # Rows are indexed from further left than they are seen now.
            mask = _mask_of(visible, query.shape[2], key.shape[2])
        output, _, _ = ops.decode(
            decoder, query, key, value, indexes.handles, indexes.begins_tensor, visible.ends_tensor, mask, visible.mask is None
        )
        return output

    def _decoder(self, query, key, scale):
        shape = (query.shape[1], key.shape[1], query.shape[3], scale)
        if shape not in self._decoders:
            self._decoders[shape] = Decoder(*shape, 0.0, self.config.for_decoder())
        return self._decoders[shape].handle()


def _mask_of(visible, rows, tokens):
    """A mask [batch, 1, 1, token] for rows that are seen from begins on; where rows end is said by causality."""
    at = torch.arange(tokens)
    return (at >= torch.tensor(visible.begins)[:, None])[:, None, None]


def _unsupported_reason(module, query, key, value, mask, dropout, kwargs):
    """Null, or why torch's attention is asked instead."""
    if query.device.type != "cpu":
        return "device: not the CPU"
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return "gradients are wanted"
    if dropout:
        return "dropout"
    if kwargs.get("sliding_window") is not None:
        return "sliding_window"
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        return "softcap, attention sinks or position bias"
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        return "attention is not causal"
    if mask is not None and (mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1):
        return "mask: not bool [batch, 1, row, token]"
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return "type: not float32, float16 or bfloat16"
    if query.shape[3] != value.shape[3] or query.shape[3] % 8 != 0 or query.shape[3] > 512:
        return "head_dim: keys and values not of one length, a multiple of 8 to 512"
    if query.shape[1] // key.shape[1] > 16:
        return "more than 16 query heads for a KV head"
    return None


def register(config=None, name="quorum"):
    """Makes `name` an attention implementation of transformers: model.set_attn_implementation(name). Returns its SparseAttention.

    Registers the mask function too: without it transformers drops masks silently.
    """
    attention = SparseAttention(config if config is not None else SparseConfig(), name)
    AttentionInterface.register(name, attention.forward)
    AttentionMaskInterface.register(name, sdpa_mask)
    return attention
