"""A Llama-like model from a GGUF file in plain NumPy: dequantised f32 weights, the tokenizer, and everything of a forward pass but
attention itself, which the caller supplies."""
from dataclasses import dataclass

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


@dataclass
class Sizes:
    num_layers: int
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass
class Layer:
    """Matrices are [in, out], contiguous: for a few rows that is BLAS's fastest order."""
    attention_norm: np.ndarray  # [hidden]
    query_key_value: np.ndarray  # [hidden, (num_qo_heads + 2 num_kv_heads) head_dim]: one product instead of three
    output: np.ndarray  # [num_qo_heads head_dim, hidden]
    feed_forward_norm: np.ndarray  # [hidden]
    gate_up: np.ndarray  # [hidden, 2 inner]
    down: np.ndarray  # [inner, hidden]


def rms_norm(rows, weight, epsilon):
    return rows / np.sqrt(np.mean(np.square(rows), axis=-1, keepdims=True) + epsilon) * weight


def rotate(rows, cosines, sines):
    """RoPE as llama.cpp does it for this architecture: a GGUF's rows of Q and K are permuted so that pairs are neighbours.

    rows [n, heads, head_dim]; cosines, sines [n, 1, head_dim / 2]."""
    even, odd = rows[..., 0::2], rows[..., 1::2]
    rotated = np.empty_like(rows)
    rotated[..., 0::2] = even * cosines - odd * sines
    rotated[..., 1::2] = even * sines + odd * cosines
    return rotated


class Model:
    def __init__(self, path):
        reader = GGUFReader(path)
        self._fields = reader.fields
        self._weights = {tensor.name: tensor for tensor in reader.tensors}
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise ValueError(f"model: general.architecture must be llama, got {architecture}")
        self.sizes = Sizes(self._field("llama.block_count"), self._field("llama.attention.head_count"),
                           self._field("llama.attention.head_count_kv"), self._field("llama.rope.dimension_count"))
        self.epsilon = self._field("llama.attention.layer_norm_rms_epsilon")
        self.context_length = self._field("llama.context_length")
        self.rope_base = self._field("llama.rope.freq_base")
        self.embedding = self._weight("token_embd")  # [vocabulary, hidden]
        self.unembedding = np.ascontiguousarray(self.embedding.T)  # the file has no other output matrix
        self.output_norm = self._weight("output_norm")
        self.layers = [self._layer(f"blk.{i}.") for i in range(self.sizes.num_layers)]
        self.tokenizer = self._tokenizer()

    def _field(self, name):
        return self._fields[name].contents()

    def _weight(self, name):
        tensor = self._weights[name + ".weight"]
        return dequantize(tensor.data, tensor.tensor_type)

    def _layer(self, prefix):
        def joined(*names):
            return np.ascontiguousarray(np.concatenate([self._weight(prefix + name) for name in names]).T)
        return Layer(self._weight(prefix + "attn_norm"), joined("attn_q", "attn_k", "attn_v"), joined("attn_output"),
                     self._weight(prefix + "ffn_norm"), joined("ffn_gate", "ffn_up"), joined("ffn_down"))

    def _tokenizer(self):
        # The traces' tokenizer, so that results compare with theirs and check.py can hold keys and values against them. The model's own
        # also cuts before every digit, which here only moves a blank from one token to the next.
        vocabulary = {token: i for i, token in enumerate(self._field("tokenizer.ggml.tokens"))}
        merges = [tuple(pair.split(" ")) for pair in self._field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def _rope_tables(self, positions):
        head_dim = self.sizes.head_dim
        frequencies = self.rope_base ** (-np.arange(0, head_dim, 2) / head_dim)
        angles = np.asarray(positions)[:, None, None] * frequencies
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def run_layers(self, tokens, positions, attend):
        """Final hidden states [n, hidden] of n tokens at these positions.

        attend(layer, queries [n, num_qo_heads, head_dim], keys [n, num_kv_heads, head_dim], values likewise) returns the attention
        output in the shape of the queries; queries and keys have been rotated. All arrays are f32."""
        sizes = self.sizes
        tables = self._rope_tables(positions)
        hidden = self.embedding[tokens]
        heads = np.cumsum([sizes.num_qo_heads, sizes.num_kv_heads])
        for number, layer in enumerate(self.layers):
            rows = rms_norm(hidden, layer.attention_norm, self.epsilon) @ layer.query_key_value
            queries, keys, values = np.split(rows.reshape(len(rows), -1, sizes.head_dim), heads, axis=1)
            attended = attend(number, rotate(queries, *tables), rotate(keys, *tables), np.ascontiguousarray(values))
            hidden += attended.reshape(len(rows), -1) @ layer.output
            gate, up = np.split(rms_norm(hidden, layer.feed_forward_norm, self.epsilon) @ layer.gate_up, 2, axis=1)
            hidden += (gate / (1.0 + np.exp(-gate)) * up) @ layer.down
        return hidden

    def logits(self, hidden):
        return rms_norm(hidden, self.output_norm, self.epsilon) @ self.unembedding
