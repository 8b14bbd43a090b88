"""The one description of a model: orthogonal fields, validated once, for training and serving. Imports no torch."""

from dataclasses import dataclass
from typing import Literal, get_args

Norm = Literal["layernorm", "rmsnorm"]
NormPlacement = Literal["pre", "post"]
Positions = Literal["learned", "sinusoidal", "rotary", "alibi", "none"]
FeedForward = Literal["gelu", "gelu_tanh", "relu", "swiglu"]

# Upper bounds on what a checkpoint may ask for. They are far above any Mini-GPT and keep a hostile config.json from
# turning into an enormous allocation before a single tensor has been read.
LIMITS = {
    "vocab_size": 1_000_000,
    "hidden_size": 65_536,
    "num_layers": 1_024,
    "num_heads": 1_024,
    "num_kv_heads": 1_024,
    "head_dim": 1_024,
    "intermediate_size": 1_048_576,
    "context_length": 4_194_304,
}
MAX_EXPERTS = 1_024
CHOICES: dict[str, tuple[str, ...]] = {
    "norm": get_args(Norm),
    "norm_placement": get_args(NormPlacement),
    "positions": get_args(Positions),
    "feed_forward": get_args(FeedForward),
}


class ConfigError(ValueError):
    """A model configuration is inconsistent; the message names the field, the value and the limit."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a decoder-only transformer.

    Every field is independent of the others except where `__post_init__` says so; families are points in this space:
    GPT-2 is layernorm + learned + gelu_tanh + biases, Llama rmsnorm + rotary + swiglu, Mixtral Llama with experts.

    Raises ConfigError naming the field that is out of range.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int  # num_heads: MHA; between: GQA (Ainslie et al. 2023); 1: MQA (Shazeer 2019)
    head_dim: int
    intermediate_size: int  # width of the feed-forward layer, of each expert when there are experts
    context_length: int  # positions 0 .. context_length - 1
    norm: Norm = "rmsnorm"
    norm_placement: NormPlacement = "pre"
    norm_epsilon: float = 1e-5
    positions: Positions = "rotary"
    rope_theta: float = 10_000.0
    feed_forward: FeedForward = "swiglu"
    attention_bias: bool = False
    feed_forward_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each query and key head before rotation
    tie_embeddings: bool = True
    sliding_window: int | None = None  # a token sees itself and the sliding_window - 1 before it
    num_experts: int = 0  # 0 is a dense feed-forward layer
    num_experts_per_token: int = 0

    def __post_init__(self) -> None:
        for field, limit in LIMITS.items():
            _check_range(field, getattr(self, field), 1, limit)
        for field, kinds in CHOICES.items():
            if getattr(self, field) not in kinds:
                raise ConfigError(f"{field} is {getattr(self, field)!r}; it must be one of {', '.join(kinds)}")
        _check_range("num_experts", self.num_experts, 0, MAX_EXPERTS)
        _check_range("num_experts_per_token", self.num_experts_per_token, min(1, self.num_experts), self.num_experts)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs of dimensions")
        if self.sliding_window is not None:
            _check_range("sliding_window", self.sliding_window, 1, LIMITS["context_length"])
        if not 0.0 < self.norm_epsilon < 1.0:
            raise ConfigError(f"norm_epsilon is {self.norm_epsilon}; it must lie between 0 and 1")
        if not 0.0 < self.rope_theta < float("inf"):
            raise ConfigError(f"rope_theta is {self.rope_theta}; it must be positive")

    @property
    def num_groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads


def _check_range(field: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{field} is {value!r}; it must be a whole number between {low} and {high}")
