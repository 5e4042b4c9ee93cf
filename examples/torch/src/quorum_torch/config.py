"""Every setting of the adapter, with its consequence."""

from dataclasses import dataclass, field

_POLICIES = {"accept": 0, "widen": 1, "dense": 2}


@dataclass
class SparseConfig:
    """What register() takes. Errors: ValueError naming the setting, its rule and its value, here or when a layer is first decoded."""

    # Share of the attention weight to reach, (0, 1]; 1 attends to everything.
    target_ratio: float = 0.9
    # If positive: instead of a ratio, the relative error of the output to stay at, by the library's own estimate.
    target_error: float = 0.0
    # Contexts with fewer tokens go to torch's own dense attention.
    min_context: int = 2048
    # Confidence in (0.5, 1) at which each step bounds the attained ratio from below; None: no bound.
    certificate: float | None = None
    # What a step does when the bound misses the target: "accept", "widen" or "dense".
    certificate_policy: str = "widen"
    # Calls with more query rows for each sequence are prefill: dense.
    max_rows: int = 16
    # If positive: every so many query rows of the prompt shape the coordinates of the index (the library's query metric); 0: plain L2, which
    # agreed better at equal bytes on the model that was measured (docs/transformers.md).
    sample_every: int = 0
    # A prompt that several rows of the batch begin with (beams, return sequences) is kept and read once; QuorumCache only.
    share_prefix: bool = True
    # Further members of quorum::DecodeOptions and quorum::IndexOptions by their names, as numbers.
    decode_options: dict[str, float] = field(default_factory=dict)
    index_options: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        _require(0.0 < self.target_ratio <= 1.0, "target_ratio", "in (0, 1]", self.target_ratio)
        _require(0.0 <= self.target_error < 1.0, "target_error", "in [0, 1)", self.target_error)
        _require(self.min_context >= 0, "min_context", "at least 0", self.min_context)
        _require(1 <= self.max_rows <= 1024, "max_rows", "1 to 1024", self.max_rows)
        _require(self.sample_every >= 0, "sample_every", "at least 0", self.sample_every)
        _require(self.certificate is None or 0.5 < self.certificate < 1.0, "certificate", "None or in (0.5, 1)", self.certificate)
        _require(self.certificate_policy in _POLICIES, "certificate_policy", f"one of {', '.join(_POLICIES)}", self.certificate_policy)
        _require(self.certificate is None or not self.target_error, "target_error", "0 with a certificate", self.target_error)

    def for_decoder(self):
        """The options of a Decoder."""
        # min_context alone says where sparse steps begin.
        options = {"target_ratio": float(self.target_ratio), "target_error": float(self.target_error), "dense_below": 0.0}
        if self.certificate is not None:
            options |= {"certificate": 1.0, "confidence": self.certificate, "policy": float(_POLICIES[self.certificate_policy])}
        return options | {name: float(number) for name, number in self.decode_options.items()}

    def for_index(self):
        """The options of a ClusterIndex."""
        return {name: float(number) for name, number in self.index_options.items()}


def _require(holds, setting, rule, value):
    if not holds:
        raise ValueError(f"SparseConfig: {setting} must be {rule}, got {value}")
