"""What several rows of a batch begin with, kept and read once: the prompt of beams and of return sequences."""

import torch

from .indexes import LayerIndexes
from .operators import ops


def rows_per_prefix(key):
    """How many neighbouring rows of the batch have the same tokens, by their keys [batch, kv_head, token, head_dim] in the first layer; 1
    unless all groups are as large.

    Keys of the same token can differ by rounding: matrix products treat rows at the edges of tiles differently.
    """
    batch = key.shape[0]
    if batch < 2:
        return 1
    apart = (key[1:] - key[:-1]).abs().amax(dim=(1, 2, 3))
    rounding = (64 if key.dtype == torch.float32 else 4) * torch.finfo(key.dtype).eps * key.abs().amax()
    begins = [0, *(torch.nonzero(apart > rounding).flatten() + 1).tolist(), batch]
    sizes = {end - begin for begin, end in zip(begins, begins[1:], strict=False)}
    return sizes.pop() if len(sizes) == 1 else 1


class SharedPrefix:
    """Keys and values [prefix, kv_head, token, head_dim] that `rows` neighbouring rows of the batch each begin with, and their indexes."""

    def __init__(self, config, key, value, rows, indexes):
        self.config = config
        self.rows = rows
        self.key, self.value = key[::rows].contiguous(), value[::rows].contiguous()
        self.indexes = indexes
        if indexes.rows or indexes.sampled:
            indexes.select(list(range(0, key.shape[0], rows)))
        self.length = key.shape[2]

    def select(self, rows):
        """Whether the batch still has this form when row i continues row rows[i]; then there is nothing to do."""
        kept = len(rows) == self.rows * self.key.shape[0]
        return kept and all(row // self.rows == new // self.rows for new, row in enumerate(rows))

    def begin_alike(self, begins):
        """Whether the rows of each prefix are seen from the same token on."""
        return all(begin == begins[row // self.rows * self.rows] for row, begin in enumerate(begins))

    def joined(self, prefix, own):
        """Whole rows: [batch, kv_head, prefix and own tokens, head_dim]."""
        return torch.cat([prefix.repeat_interleave(self.rows, 0), own], 2)

    def indexes_of_rows(self):
        """Forks for all rows of the batch."""
        indexes = self.indexes
        indexes.select([row for row in range(self.key.shape[0]) for _ in range(self.rows)])
        return indexes

    def copy(self):
        other = SharedPrefix.__new__(SharedPrefix)
        vars(other).update(vars(self))
        other.indexes = self.indexes.copy()
        return other

    def decode(self, decoder, query, key, value, own, begins, scale):
        """Attention of query [batch, qo_head, 1, head_dim] over the prefix and the rows' own keys and values; own are their indexes."""
        batch, num_qo_heads, _, head_dim = query.shape
        prefixes = self.key.shape[0]
        self.indexes.follow(self.key, self.value, begins[:: self.rows], [self.length] * prefixes, scale)
        together = query.reshape(prefixes, self.rows, num_qo_heads, head_dim).transpose(1, 2)
        indexes = self.indexes
        output, lse, report = ops.decode(
            decoder, together, self.key, self.value, indexes.handles, indexes.begins_tensor, None, None, False
        )
        output, lse = output.view(batch, 1, num_qo_heads, head_dim), lse.view(batch, 1, num_qo_heads)
        tokens = key.shape[2]
        if tokens == 0:
            return output, lse, report
        handles = None
        if tokens >= self.config.min_context:
            own.follow(key, value, [0] * batch, [tokens] * batch, scale)
            handles = own.handles
        output_own, lse_own, _ = ops.decode(decoder, query, key, value, handles)
        return *ops.merge(output, lse, output_own, lse_own), report
