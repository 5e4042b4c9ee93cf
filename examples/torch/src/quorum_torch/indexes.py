"""The indexes of one layer: one for each row of the batch, kept in step with the keys and values that they are built over."""

import torch

from .operators import ClusterIndex, ops


class LayerIndexes:
    """Rows of the batch have an index each once they are decoded sparsely; a row without one is None.

    Tokens are counted from the first that a row sees: `begins` says where that is, 0 without left padding. Appending is put off until
    enough tokens wait to be clustered, for what an index does not know of is always read.
    """

    def __init__(self, config):
        self.config = config
        self.rows = []
        self.begins = []
        self._samples = []  # of queries: (position of the first, [batch, qo_head, sample_every-th rows, head_dim])
        self._handles = None
        self._begins = None
        self._append_at = 0

    def __bool__(self):
        return any(row is not None for row in self.rows)

    @property
    def sampled(self):
        """Whether queries have been sampled."""
        return bool(self._samples)

    @property
    def handles(self):
        """int64 [batch] for the operators."""
        if self._handles is None:
            self._handles = torch.tensor([0 if row is None else row.handle() for row in self.rows], dtype=torch.int64)
            self._begins = torch.tensor(self.begins, dtype=torch.int64)
        return self._handles

    @property
    def begins_tensor(self):
        return self._begins if self.handles is not None else None

    def sample(self, query, position):
        """Keeps every sample_every-th of the query rows [batch, qo_head, row, head_dim], the first of which stands at `position`."""
        if self.config.sample_every == 0:
            return
        first = -position % self.config.sample_every
        if first < query.shape[2]:
            self._samples.append((position + first, query[:, :, first :: self.config.sample_every].clone()))

    def follow(self, key, value, begins, ends, scale):
        """Builds what is missing and appends what is due; key and value are [batch, kv_head, token, head_dim], begins and ends lists."""
        if len(self.rows) != len(begins):
            self.rows, self.begins = [None] * len(begins), list(begins)
        for row, begin in enumerate(begins):
            if self.rows[row] is None or begin < self.begins[row]:
                self._build(row, key, value, begin, ends[row], scale)
                self._append_at = 0
        end = max(ends)
        if end >= self._append_at:
            self._append(key, value, ends)

    def truncate(self, num_tokens):
        """The cache holds num_tokens tokens now, what is appended later is new."""
        for row, index in enumerate(self.rows):
            if index is not None:
                index.truncate(max(0, min(num_tokens - self.begins[row], index.num_tokens())))
        every = self.config.sample_every or 1
        kept = [(at, query[:, :, : max(0, -(-(num_tokens - at) // every))]) for at, query in self._samples]
        self._samples = [sample for sample in kept if sample[1].shape[2] > 0]
        self._append_at = 0

    def select(self, rows):
        """Row i continues what row rows[i] held: a fork of its index where it is not the only one to do so."""
        if list(rows) == list(range(len(self.rows))):
            return
        taken = set()
        indexes = []
        for row in rows:
            index = self.rows[row] if row < len(self.rows) else None
            indexes.append(index.fork() if row in taken and index is not None else index)
            taken.add(row)
        order = torch.as_tensor(rows)
        self.begins = [self.begins[row] for row in rows] if self.begins else []
        self._samples = [(position, query[order]) for position, query in self._samples]
        self.rows = indexes if self.rows else []
        self._handles = None
        self._append_at = 0

    def forget(self, row):
        """What this row of the batch holds is unknown: its index is built anew when it is needed."""
        if row < len(self.rows):
            self.rows[row] = None
        self._handles = None

    def copy(self):
        """Forks of all."""
        other = LayerIndexes(self.config)
        other.rows = [None if row is None else row.fork() for row in self.rows]
        other.begins = list(self.begins)
        other._samples = list(self._samples)
        return other

    def bytes(self):
        """Of all indexes, what forks share counted once."""
        return ops.total_index_bytes([row for row in self.rows if row is not None])

    def _build(self, row, key, value, begin, end, scale):
        num_kv_heads, head_dim = key.shape[1], key.shape[3]
        queries = self._queries_of(row, begin)
        num_qo_heads = num_kv_heads if queries is None else queries.shape[0]
        index = ClusterIndex(num_qo_heads, num_kv_heads, head_dim, scale, self.config.for_index())
        index.build(key[row, :, begin:end], value[row, :, begin:end], queries)
        self.rows[row], self.begins[row] = index, begin
        self._handles = None

    def _queries_of(self, row, begin):
        """Sampled queries of a row of the batch that do not stand in its padding, [qo_head, number, head_dim], or None."""
        every = self.config.sample_every or 1
        parts = [query[row, :, max(0, -(-(begin - at) // every)) :] for at, query in self._samples if row < query.shape[0]]
        parts = [part for part in parts if part.shape[1] > 0]
        return torch.cat(parts, 1) if parts else None

    def _append(self, key, value, ends):
        every = int(self.config.index_options.get("recluster_every", 64))
        for row, index in enumerate(self.rows):
            if ends[row] - self.begins[row] - index.num_tokens() >= every:
                tokens = slice(self.begins[row], ends[row])
                index.append(key[row, :, tokens], value[row, :, tokens])
        known = min(begin + index.num_tokens() for begin, index in zip(self.begins, self.rows, strict=True))
        self._append_at = known + every
