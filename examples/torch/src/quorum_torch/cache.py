"""A cache for transformers that grows in place and tells its indexes what happens to it, instead of leaving them to find out.

DynamicCache copies all keys and values at every token; this one doubles as little as it can. Rows of a batch that begin with the same
prompt (beams, return sequences) keep and read it once.
"""

import copy

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from .indexes import LayerIndexes
from .shared_prefix import SharedPrefix, rows_per_prefix


class QuorumLayer(DynamicLayer):
    """Keys and values [batch, kv_head, token, head_dim] of one layer as views into larger tensors."""

    def __init__(self, adapter, model_config, first=None):
        super().__init__()
        self.adapter = adapter
        self.model_config = model_config
        self.first = first  # the cache's first QuorumLayer, null for itself
        self.rows_per_prefix = 1  # what the first layer has found
        self.indexes = LayerIndexes(adapter.config)
        self.length = 0
        self.prefix = None  # SharedPrefix; then keys and values are what the rows have of their own
        self._buffers = None
        self._may_share = False  # the last call was a prompt

    def lazy_initialization(self, key_states, value_states):
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows = key_states.shape[2]
        # Any other attention wants whole rows.
        is_read_here = self.model_config._attn_implementation == self.adapter.name
        if rows > 1 or not is_read_here:
            self.unshare()
        elif self._may_share and self.adapter.shares(self.length, key_states.shape[0]):
            self._share()
        self._may_share = rows > 1
        self._write(key_states, value_states)
        # How the attention function finds the way back from the tensor to this layer.
        self.keys.quorum_layer = self
        return self.keys, self.values

    def get_seq_length(self):
        return self.length

    def reset(self):
        self.__init__(self.adapter, self.model_config, self.first)

    def crop(self, tokens_to_remove):
        if tokens_to_remove > 0:
            raise ValueError(f"crop: tokens_to_remove must be negative or 0, got {tokens_to_remove}")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        length = max(0, self.length + tokens_to_remove)
        if self.prefix is not None and length < self.prefix.length:
            self.unshare()
        own = length - (self.prefix.length if self.prefix is not None else 0)
        self._view(own)
        self.indexes.truncate(own)
        self.length = length

    def reorder_cache(self, beam_idx):
        self._select(beam_idx)

    def batch_select_indices(self, indices):
        self._select(torch.arange(self._batch())[indices])

    def batch_repeat_interleave(self, repeats):
        if self.length > 0:
            self._select(torch.arange(self._batch()).repeat_interleave(repeats))

    def unshare(self):
        """Every row has the whole sequence again. Cost: a copy of all keys and values."""
        if self.prefix is None:
            return
        prefix, self.prefix = self.prefix, None
        self.indexes = prefix.indexes_of_rows()
        self._buffers = None
        keys, values = self.keys, self.values
        self.keys = self.values = None
        self._write(prefix.joined(prefix.key, keys), prefix.joined(prefix.value, values), length=0)

    def bytes(self):
        """Keys and values as they are kept, room to grow included."""
        kept = [*(self._buffers or ()), *((self.prefix.key, self.prefix.value) if self.prefix is not None else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def __deepcopy__(self, memo):
        other = QuorumLayer(self.adapter, self.model_config)
        for name, member in vars(self).items():
            setattr(other, name, member)
        other.indexes = self.indexes.copy()
        other.prefix = None if self.prefix is None else self.prefix.copy()
        other._buffers = None
        if self.keys is not None:
            other.keys, other.values = self.keys.clone(), self.values.clone()
        return other

    def _batch(self):
        return 0 if self.keys is None else self.keys.shape[0]

    def _write(self, key_states, value_states, length=None):
        """Appends; afterwards keys and values are views of all that the rows have of their own."""
        held = 0 if self.keys is None else self.keys.shape[2]
        needed = held + key_states.shape[2]
        if self._buffers is None or self._buffers[0].shape[2] < needed:
            self._grow(key_states, value_states, held, needed)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, held:needed] = states
        self._view(needed)
        self.length = (self.length if length is None else length) + key_states.shape[2]

    def _grow(self, key_states, value_states, held, needed):
        capacity = needed + max(256, needed // 4)
        buffers = [states.new_empty((*states.shape[:2], capacity, states.shape[3])) for states in (key_states, value_states)]
        if held > 0:
            buffers[0][:, :, :held] = self.keys
            buffers[1][:, :, :held] = self.values
        self._buffers = buffers

    def _view(self, tokens):
        if self._buffers is not None:
            self.keys, self.values = (buffer[:, :, :tokens] for buffer in self._buffers)
        elif self.keys is not None:
            self.keys, self.values = self.keys[:, :, :tokens], self.values[:, :, :tokens]

    def _select(self, rows):
        """Row i continues what row rows[i] held."""
        if self.length == 0:
            return
        listed = rows.tolist()
        if self.prefix is not None and not self.prefix.select(listed):
            self.unshare()
        if listed == list(range(self._batch())):
            return
        self.indexes.select(listed)
        self.keys, self.values = self.keys[rows], self.values[rows]
        self._buffers = None

    def _share(self):
        # Keys of the first layer tell tokens apart, for they depend on nothing but the token and its place; the others follow it.
        if self.first is None:
            self.rows_per_prefix = rows_per_prefix(self.keys)
        rows = (self.first or self).rows_per_prefix
        if rows < 2:
            return
        self.prefix = SharedPrefix(self.adapter.config, self.keys, self.values, rows, self.indexes)
        self.indexes = LayerIndexes(self.adapter.config)
        self.keys, self.values = self.keys[:, :, :0], self.values[:, :, :0]
        self._buffers = None


class QuorumCache(DynamicCache):
    """A DynamicCache whose layers of full attention are QuorumLayers; pass it to generate() as `cache`. Any attention can read it."""

    def __init__(self, adapter, model_config):
        super().__init__(config=model_config)
        first = None
        for number, layer in enumerate(self.layers):
            if type(layer) is DynamicLayer:
                self.layers[number] = QuorumLayer(adapter, model_config, first)
                first = first or self.layers[number]

    def __deepcopy__(self, memo):
        other = copy.copy(self)
        other.layers = [copy.deepcopy(layer, memo) for layer in self.layers]
        copied = [layer for layer in other.layers if isinstance(layer, QuorumLayer)]
        for layer in copied[1:]:
            layer.first = copied[0]
        return other

    def bytes(self):
        """Of keys and values in QuorumLayers, and of their indexes."""
        layers = [layer for layer in self.layers if isinstance(layer, QuorumLayer)]
        indexes = [layer.prefix.indexes if layer.prefix is not None else layer.indexes for layer in layers]
        return sum(layer.bytes() for layer in layers), sum(rows.bytes() for rows in indexes)
