"""How an engine is to be run: device, precision and the sizes that bound it. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]
BackendName = Literal["auto", "native", "torch"]
Quantize = Literal["none", "int8"]
KVCache = Literal["auto", "int8"]


@dataclass(frozen=True)
class EngineConfig:
    """The engine: its device, its precision, and how much it does at once.

    Raises ValueError naming the field that is out of range.
    """

    device: Device = "auto"
    """auto takes a CUDA device if there is one."""
    dtype: Dtype = "auto"
    """auto is bfloat16 where the hardware multiplies it, float32 elsewhere."""
    backend: BackendName = "auto"
    """What computes the model: auto is the native back end on a CPU, as far as it can, and torch elsewhere."""
    num_blocks: int | None = None
    """KV-cache blocks of 16 tokens per model; sized from the memory at hand when not given."""
    max_running: int = 64
    """Sequences that decode together."""
    max_step_tokens: int = 192
    """Prompt and output tokens computed in one step; longer prompts are cut into chunks. Some 200 keep a CPU's dot
    products busy; a GPU wants more."""
    threads: int | None = None
    """CPU threads of the engine; when not given every core, or with torch every core but one."""
    allow_inexact: bool = False
    """Serve although the start-up check found that answers depend on what else is running."""
    quantize: Quantize = "none"
    """int8 keeps weights as int8 with a scale per output channel and rounds their inputs to 8 bits per token, by the
    native back end only. A mixture's router, norms, embeddings and attention stay in dtype."""
    kv_cache: KVCache = "auto"
    """int8 keeps keys and values as int8 with a scale per token and head, which holds nearly twice the tokens, by the
    native back end only. auto keeps them in dtype."""

    def __post_init__(self) -> None:
        bounds = (
            ("num_blocks", self.num_blocks, 1, 2**24),
            ("max_running", self.max_running, 1, 4096),
            ("max_step_tokens", self.max_step_tokens, 1, 2**14),
            ("threads", self.threads, 1, 1024),
        )
        for name, value, low, high in bounds:
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be between {low} and {high}")
        if self.max_step_tokens < self.max_running:
            raise ValueError(
                f"max_step_tokens is {self.max_step_tokens}; it must be at least max_running ({self.max_running}), "
                "or running sequences would wait for each other"
            )
