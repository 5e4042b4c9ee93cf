"""The dense run over the prompt, in NumPy, and its cache on disk: what every setting starts from."""
import os
import zipfile

import numpy as np

from progress import progress

PROMPT_QUERY_EVERY = 32
QUERY_BLOCK = 256  # rows of scores that exist at a time: 256 x 8192 in f32 is 8 MB


def attend_causally(queries, keys, values):
    """Dense attention of every query to the tokens up to its own; the last query stands at the last key.

    queries [n, num_qo_heads, head_dim] f32; keys, values [m >= n, num_kv_heads, head_dim]."""
    num_queries, num_qo_heads, head_dim = queries.shape
    group, offset = num_qo_heads // keys.shape[1], len(keys) - num_queries
    output = np.empty_like(queries)
    for head in range(num_qo_heads):
        head_keys = keys[:, head // group].astype(np.float32)
        head_values = values[:, head // group].astype(np.float32)
        for begin in range(0, num_queries, QUERY_BLOCK):
            end = min(begin + QUERY_BLOCK, num_queries)
            visible = offset + end
            scores = (queries[begin:end, head] / np.float32(np.sqrt(head_dim))) @ head_keys[:visible].T
            square = scores[:, visible - (end - begin):]
            square[np.triu_indices(end - begin, 1)] = -np.inf
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            output[begin:end, head] = (scores @ head_values[:visible]) / scores.sum(axis=1, keepdims=True)
    return output


class Prompt:
    """keys, values [layers, tokens, num_kv_heads, head_dim] f16; queries [layers, every 32nd token, num_qo_heads, head_dim] f32."""

    ARRAYS = ("tokens", "keys", "values", "queries")

    def __init__(self, tokens, keys, values, queries):
        self.tokens, self.keys, self.values, self.queries = tokens, keys, values, queries

    @classmethod
    def compute(cls, model, tokens):
        keys, values, sampled = [], [], []

        def attend(layer, queries, new_keys, new_values):
            progress("prefill, layer", layer + 1, model.sizes.num_layers)
            keys.append(new_keys.astype(np.float16))
            values.append(new_values.astype(np.float16))
            sampled.append(queries[::PROMPT_QUERY_EVERY])
            return attend_causally(queries, keys[-1], values[-1])

        model.run_layers(tokens, np.arange(len(tokens)), attend)
        return cls(np.asarray(tokens), np.stack(keys), np.stack(values), np.stack(sampled))

    @classmethod
    def cached(cls, model, tokens, path):
        """From the file if it holds these tokens; otherwise computed and written there."""
        try:
            with np.load(path) as file:
                if np.array_equal(file["tokens"], tokens):
                    return cls(*(file[name] for name in cls.ARRAYS))
        except (FileNotFoundError, zipfile.BadZipFile, KeyError):
            pass  # absent, or cut off while it was written
        prompt = cls.compute(model, tokens)
        np.savez(path + ".part.npz", **{name: getattr(prompt, name) for name in cls.ARRAYS})
        os.replace(path + ".part.npz", path)
        return prompt
