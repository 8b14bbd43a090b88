"""What goes into the engine and what one step returns: plain frozen data, no torch."""

from dataclasses import dataclass
from typing import Literal

from server.engine.grammar_spec import Grammar
from server.engine.params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]
DraftMethod = Literal["off", "draft", "ngram", "suffix", "auto"]


@dataclass(frozen=True)
class Speculation:
    """How tokens of a sequence are guessed ahead of the model. Never changes them, see the exactness contract."""

    method: DraftMethod = "off"
    num_tokens: int = 4  # drafted per step at most


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: logits are pushed away from those after `negative_prompt` (Sanchez et al. 2023)."""

    negative_prompt: tuple[int, ...]
    scale: float  # 1 changes nothing


@dataclass(frozen=True)
class SequenceRequest:
    """One sequence to decode. A client request with several prompts or n > 1 is several of these.

    `id` is unique for the life of the engine process. `cache_salt` separates tenants: prefix-cache blocks are shared
    only between sequences with equal salts.
    """

    id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    cache_salt: str = ""
    speculation: Speculation = Speculation()
    grammar: Grammar | None = None
    guidance: Guidance | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probabilities (natural log, unmodified model distribution) at one position."""

    token: int
    logprob: float
    rank: int  # 1 = the most likely token
    top_tokens: tuple[int, ...]  # most likely first, ties by lower id
    top_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class SequenceOutput:
    """What one step added to one sequence. A finished sequence has exactly one output with a finish reason, its last.

    `logprobs` is as long as `tokens` when asked for, else empty. `prompt_logprobs` holds those prompt positions whose
    logits this step computed (in order, starting with prompt position 1). `stop_token` is the end-of-sequence or stop
    token that ended it; it is the last of `tokens`.
    """

    id: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    num_cached_tokens: int = 0  # prompt tokens taken from the prefix cache when first admitted
    scheduled_at: float = 0.0  # time.monotonic() of the first step that ran it
    num_drafted: int = 0  # tokens guessed ahead in this step
    num_accepted: int = 0  # of them, those that became tokens of the sequence
    error: str = ""  # why the finish reason is "error"


@dataclass(frozen=True)
class StepStats:
    """One step in numbers. Counts are of this step alone; gauges are as the step left them."""

    started_at: float  # time.monotonic()
    duration_seconds: float
    schedule_seconds: float
    draft_seconds: float
    forward_seconds: float
    sample_seconds: float
    num_prompt_tokens: int  # prompt tokens computed (recomputation after a preemption included)
    num_generated_tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_prefix_query_tokens: int
    num_prefix_hit_tokens: int
    num_preemptions: int
    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int  # neither referenced nor cached
    num_cached_blocks: int  # unreferenced, kept for their contents


@dataclass(frozen=True)
class StepOutput:
    """Everything one engine step has to say."""

    outputs: tuple[SequenceOutput, ...]
    stats: StepStats


@dataclass(frozen=True)
class EngineInfo:
    """What the HTTP side must know about a loaded model."""

    vocab_size: int
    context_length: int  # prompt plus output tokens
    eos_token_ids: tuple[int, ...]
    num_parameters: int
    dtype: str
    device: str
    num_blocks: int
    block_size: int
    fingerprint: str = ""  # of the checkpoint's contents
