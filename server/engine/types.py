"""What goes into the engine and what one step returns: plain frozen data, no torch."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from server.engine.grammar_spec import Grammar
from server.engine.params import ParameterError, SamplingParams
from server.engine.sampling.ranges import Range
from server.engine.tracing_types import TokenTrace, TraceOptions

FinishReason = Literal["stop", "length", "abort", "error"]
DraftMethod = Literal["off", "draft", "ngram", "suffix", "auto"]
MAX_DRAFT_TOKENS = 8


@dataclass(frozen=True)
class Speculation:
    """How tokens of a sequence are guessed ahead of the model. Never changes them, see the exactness contract."""

    method: DraftMethod = "off"
    num_tokens: int = 4  # drafted per step at most

    def __post_init__(self) -> None:
        """Raises ParameterError for more than MAX_DRAFT_TOKENS or none."""
        if not 1 <= self.num_tokens <= MAX_DRAFT_TOKENS:
            message = f"is {self.num_tokens}; it must be between 1 and {MAX_DRAFT_TOKENS}"
            raise ParameterError("speculative.num_tokens", message)


GUIDANCE_SCALES = Range(-20.0, 20.0)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: logits are pushed away from those after `negative_prompt` (Sanchez et al. 2023).

    Raises ParameterError for a scale out of range.
    """

    negative_prompt: tuple[int, ...]
    scale: float  # 1 changes nothing, 0 decodes the negative prompt

    def __post_init__(self) -> None:
        GUIDANCE_SCALES.check("guidance_scale", self.scale)


MAX_BEAMS = 16
LENGTH_PENALTIES, DIVERSITY_PENALTIES = Range(-10.0, 10.0), Range(0.0, 100.0)
EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class BeamSearch:
    """Search for the likeliest texts instead of sampling one; see `beam_group` for what the fields mean.

    Sequences that differ in nothing but `rank` (and the seed, which is not used) and are added together share one
    search; each gets another of its hypotheses. Raises ParameterError for values out of range.
    """

    width: int
    rank: int = 0  # which hypothesis the sequence gets, 0 being the best
    length_penalty: float = 1.0  # the exponent of the length that sums of log-probabilities are divided by
    early_stopping: EarlyStopping = False
    num_groups: int = 1
    diversity_penalty: float = 0.0  # per beam of an earlier group that chose the same token in the same step

    def __post_init__(self) -> None:
        Range(1, MAX_BEAMS).check("beam_width", self.width)
        Range(0, self.width - 1).check("n", self.rank)
        LENGTH_PENALTIES.check("length_penalty", self.length_penalty)
        Range(1, self.width).check("num_beam_groups", self.num_groups)
        DIVERSITY_PENALTIES.check("diversity_penalty", self.diversity_penalty)
        if self.width % self.num_groups:
            raise ParameterError(
                "num_beam_groups", f"is {self.num_groups}; it must divide the beam width, which is {self.width}"
            )
        if (self.num_groups > 1) != (self.diversity_penalty > 0.0):
            message = f"is {self.diversity_penalty} with {self.num_groups} groups; it must be above 0 with several"
            raise ParameterError("diversity_penalty", message + " and 0 with one")


@dataclass(frozen=True)
class SequenceRequest:
    """One sequence to decode. A client request with several prompts or n > 1 is several of these.

    `id` is unique for the life of the engine process. `cache_salt` separates tenants: prefix-cache blocks are shared
    only between sequences with equal salts. The last `num_forked` tokens of the prompt were another sequence's output,
    which this one continues: to everything that looks back they are output, to what counts tokens they are prompt.
    """

    id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    cache_salt: str = ""
    speculation: Speculation = Speculation()
    grammar: Grammar | None = None
    guidance: Guidance | None = None
    beams: BeamSearch | None = None
    num_forked: int = 0
    trace: TraceOptions | None = None

    def __post_init__(self) -> None:
        """Raises ParameterError for a trace of a beam search, which makes no choice that it could show."""
        if self.trace is not None and self.beams is not None:
            raise ParameterError("trace", "is set together with beam search; they do not combine")

    @property
    def forked(self) -> tuple[int, ...]:
        """The output of another sequence that this one continues."""
        return self.prompt[len(self.prompt) - self.num_forked :]


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probabilities (natural log, unmodified model distribution) at one position."""

    token: int
    logprob: float
    rank: int  # 1 = the most likely token
    top_tokens: tuple[int, ...]  # most likely first, ties by lower id
    top_logprobs: tuple[float, ...]
    entropy: float = 0.0  # of the whole distribution, in nats


@dataclass(slots=True)
class SequenceOutput:
    """What one step added to one sequence. A finished sequence has exactly one output with a finish reason, its last.

    Nobody writes to one, though it is not frozen: there is one for every token, and freezing makes it cost five times
    as much.

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
    blames_grammar: bool = False  # the error is the client's: a grammar that is not one, or too much for its limits
    beam_score: float | None = None  # of a finished hypothesis of a beam search
    traces: tuple[TokenTrace, ...] = ()  # as long as `tokens` when asked for


class SequenceStep(NamedTuple):
    """One sequence's part in one step: how many of its tokens were computed and guessed."""

    id: int
    num_prompt_tokens: int
    num_decode_tokens: int  # outputs fed back: one a pass, or more in a replay after a preemption
    num_draft_tokens: int
    num_accepted_tokens: int


@dataclass(frozen=True)
class DraftCounts:
    """What became of one step's drafts by one method, by their place behind the latest token (the first is next)."""

    method: DraftMethod  # never "off" or "auto": whoever drafted
    num_drafted: tuple[int, ...]  # MAX_DRAFT_TOKENS places
    num_accepted: tuple[int, ...]


@dataclass(slots=True)
class StepStats:
    """One step in numbers. Counts are of this step alone; gauges are as the step left them.

    Nobody writes to one; freezing would cost as it does a SequenceOutput.
    """

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
    sequences: tuple[SequenceStep, ...] = ()  # those that ran
    drafts: tuple[DraftCounts, ...] = ()  # of the methods that drafted
    has_draft_model_failed: bool = False  # for good: it drafts no more
    num_passes: int = 1  # through the model, in a row; see `multi_step`


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
    backend: str = "torch"  # or native, with its instruction set
    fingerprint: str = ""  # of the checkpoint's contents
    has_draft_model: bool = False
    quantize: str = "none"  # how weights are kept: int8, or none for dtype
    kv_cache: str = ""  # how keys and values are kept: int8, or the dtype
    # What a trace of the model's insides has to tell of; 0 where it cannot be told.
    num_layers: int = 0
    num_heads: int = 0
    num_experts_per_token: int = 0
