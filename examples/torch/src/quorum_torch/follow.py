"""Which indexes belong to a cache that does not say what happens to it: DynamicCache, StaticCache, or any other that hands keys on.

A call with T query rows over L tokens tells that the cache held L - T tokens before: a crop shows in that. Reordered or replaced rows show
in the keys: those of KV head 0 are remembered, of the prompt a sample, of every token since all, and compared at every call.
"""

import weakref

import torch

from .indexes import LayerIndexes

_SAMPLE = 64  # remembered tokens of a prompt, besides its last ones
_LAST = 16
_SEQUENCES = 4  # caches that take turns on one layer


class FollowedCache:
    """Indexes of one cache's layer and what is remembered of its keys."""

    def __init__(self, config):
        self.indexes = LayerIndexes(config)
        self.length = 0
        self._positions = None  # int64 [remembered], ascending
        self._keys = None  # [batch, remembered, head_dim]

    def recognise(self, key, before):
        """The row that each row of key's batch continues, None for one that is unknown; None if all are. The cache held `before` tokens."""
        known = int(torch.searchsorted(self._positions, min(before, self.length)))
        if known == 0:
            return None
        now = key[:, 0].index_select(1, self._positions[:known])
        then = self._keys[:, :known]
        if now.shape[0] == then.shape[0] and torch.equal(now, then):
            return list(range(now.shape[0]))
        equal = (now[:, None] == then[None]).flatten(2).all(2)
        rows = [torch.nonzero(row).flatten().tolist() for row in equal]
        if not any(rows):
            return None
        return [None if not same else new if new in same else same[0] for new, same in enumerate(rows)]

    def continue_from(self, rows, before):
        """Goes on with the rows that recognise() returned, `before` tokens of them."""
        lost = [new for new, row in enumerate(rows) if row is None]
        self.indexes.select([0 if row is None else row for row in rows])
        for row in lost:
            self.indexes.forget(row)
        if before < self.length:
            self.indexes.truncate(before)
            kept = int(torch.searchsorted(self._positions, before))
            self._positions, self._keys = self._positions[:kept], self._keys[:, :kept]
        self.length = min(self.length, before)

    def remember(self, key, length, known_rows):
        """Tokens [self.length, length) have been written. known_rows: whether recognise() found every row where it was."""
        new = length - self.length
        positions = torch.arange(self.length, length)
        if new > _SAMPLE + _LAST:
            spread = torch.linspace(self.length, length - 1, _SAMPLE).long()
            positions = torch.unique(torch.cat([spread, positions[-_LAST:]]))
        if self._positions is not None:
            positions_all = torch.cat([self._positions, positions])
        else:
            positions_all = positions
        if known_rows and self._keys is not None:
            self._keys = torch.cat([self._keys, key[:, 0].index_select(1, positions)], 1)
        else:
            self._keys = key[:, 0].index_select(1, positions_all)
        self._positions = positions_all
        self.length = length


class Follower:
    """The caches that were last seen at each module."""

    def __init__(self, config):
        self.config = config
        self._modules = weakref.WeakKeyDictionary()

    def indexes(self, module, key, before, length):
        """LayerIndexes of the cache whose keys [batch, kv_head, token, head_dim] hold `length` tokens now and `before` until this call."""
        caches = self._modules.setdefault(module, [])
        found, rows = None, None
        for cache in caches if before > 0 else ():
            rows = cache.recognise(key, before)
            if rows is not None:
                found = cache
                break
        if found is None:
            found = FollowedCache(self.config)
            found.remember(key, length, False)
        else:
            caches.remove(found)
            found.continue_from(rows, before)
            found.remember(key, length, rows == list(range(len(rows))))
        caches.insert(0, found)
        del caches[_SEQUENCES:]
        return found.indexes

    def forget(self):
        self._modules.clear()
