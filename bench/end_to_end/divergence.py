"""How far the logits of a lane are from the dense ones, position by position, and what its attention read meanwhile."""
import numpy as np

from lane import COLUMNS


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)


class Record:
    """Rows of one lane, one for each decoded position."""

    def __init__(self, setting, num_positions, sizes):
        self.setting = setting
        self.kl = np.zeros(num_positions)  # of the dense distribution from this one, nats
        self.loss = np.zeros(num_positions)  # nats of the token that the text has next
        self.top = np.zeros(num_positions, dtype=np.int64)  # most likely next token
        self.reports = np.zeros((num_positions, sizes.num_layers, sizes.num_qo_heads, len(COLUMNS)))
        self.seconds = np.zeros((num_positions, sizes.num_layers, 2))  # append, decode
        self._group = sizes.num_qo_heads // sizes.num_kv_heads

    def add(self, row, dense, own, next_token):
        """dense, own: log-probabilities [vocabulary]."""
        self.kl[row] = np.sum(np.exp(dense) * (dense - own), dtype=np.float64)
        self.loss[row] = -own[next_token]
        self.top[row] = own.argmax()

    def column(self, name):
        """[positions, layers, num_qo_heads]"""
        return self.reports[..., COLUMNS.index(name)]

    def per_kv_head(self, name):
        """[positions, layers, num_kv_heads]: of what the heads of a group share, each once."""
        return self.column(name)[:, :, ::self._group]

    def of_group(self, name, reduce):
        """[positions, layers, num_kv_heads]: np.min or np.max over the query heads of each group."""
        column = self.column(name)
        return reduce(column.reshape(*column.shape[:2], -1, self._group), axis=3)

    def compared(self):
        """Whether the setting had errors=on."""
        return not np.isnan(self.column("error")).any()

    def byte_shares(self):
        """[positions, layers, num_kv_heads], of what dense attention reads."""
        return self.per_kv_head("bytes_read") / self.per_kv_head("bytes_dense")


def extreme_heads(values, count, sign):
    """The largest (sign 1) or smallest (-1) of values [layers, num_kv_heads], with where they are."""
    order = np.argsort(-sign * values, axis=None)[:count]
    return [{"layer": int(layer), "kv_head": int(head), "value": round(float(values[layer, head]), 4)}
            for layer, head in zip(*np.unravel_index(order, values.shape))]


def worst_positions(record, dense, first_position, tokens, text_of, count=5):
    """Where the two lanes differ most: what each predicts there, and the heads that stand out."""
    extremes = {"lowest_attained_ratio": (record.of_group("attained_ratio", np.min), -1), "largest_byte_share": (record.byte_shares(), 1)}
    if record.compared():
        extremes["largest_error"] = record.of_group("error", np.max), 1
    worst = []
    for row in np.argsort(-record.kl)[:count]:
        position = first_position + int(row)
        worst.append({"position": position, "token": text_of(tokens[position]), "kl": float(record.kl[row]),
                      "next_token": text_of(tokens[position + 1]), "dense_predicts": text_of(dense.top[row]),
                      "sparse_predicts": text_of(record.top[row]),
                      "heads": {name: extreme_heads(values[row], 3, sign) for name, (values, sign) in extremes.items()}})
    return worst


def summary(record, dense):
    """Means over positions; bytes and tokens over layers and KV heads too, milliseconds are of all layers together."""
    append_ms, attention_ms = 1e3 * record.seconds.sum(axis=1).T
    return {
        "setting": record.setting, "positions": len(record.kl),
        "kl_mean": float(record.kl.mean()), "kl_standard_error": float(record.kl.std() / np.sqrt(len(record.kl))),
        "kl_median": float(np.median(record.kl)), "kl_p99": float(np.quantile(record.kl, 0.99)),
        "kl_worst": float(record.kl.max()), "top1_agreement": float(np.mean(record.top == dense.top)),
        "perplexity": float(np.exp(record.loss.mean())), "perplexity_dense": float(np.exp(dense.loss.mean())),
        "byte_share": float(record.per_kv_head("bytes_read").sum() / record.per_kv_head("bytes_dense").sum()),
        "tokens_read": float(record.per_kv_head("tokens_read").mean()),
        "attained_ratio": float(record.of_group("attained_ratio", np.min).mean()),
        "head_error": float(record.column("error").mean()) if record.compared() else None,
        "dense_share": float(record.per_kv_head("dense").mean()),
        "attention_ms_mean": float(attention_ms.mean()), "attention_ms_median": float(np.median(attention_ms)),
        "append_ms_mean": float(append_ms.mean()), "append_ms_worst": float(append_ms.max()),
    }
