"""How an engine is to be run: device, precision and the sizes that bound it. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class EngineConfig:
    """Raises ValueError naming the field that is out of range."""

    device: Device = "auto"
    dtype: Dtype = "auto"
    num_blocks: int | None = None  # KV blocks of 16 tokens; None sizes the cache from the memory at hand
    max_running: int = 64  # sequences per step
    max_step_tokens: int = 512  # prompt and output tokens per step; long prompts are cut into chunks of at most this
    threads: int | None = None  # CPU threads of the engine; None is every core
    allow_inexact: bool = False  # serve although the start-up check found answers that depend on batch-mates

    def __post_init__(self) -> None:
        bounds = (
            ("num_blocks", self.num_blocks, 1, 2**24),
            ("max_running", self.max_running, 1, 4096),
            ("max_step_tokens", self.max_step_tokens, 1, 2**20),
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
