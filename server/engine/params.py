"""How one sequence is to be decoded: the validated sampling parameters. Knows no torch and no HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_SEED = 2**64 - 1
MAX_LOGPROBS = 20
MAX_TOKEN_LIST = 1024
MAX_PENALTY = 2.0
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 10.0
MAX_TEMPERATURE = 10.0
MAX_LOGIT_BIAS = 100.0


class ParameterError(ValueError):
    """A sampling parameter is outside its range. `parameter` names the field; the message says value and limit."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter} {message}")
        self.parameter = parameter


@dataclass(frozen=True)
class SamplingParams:
    """Everything, besides the model and the prompt, that the output tokens are a function of.

    Stages apply in this order: allowed/banned tokens and min_tokens, logit_bias, repetition penalty, frequency and
    presence penalties, temperature, top_k, top_p, min_p, then arg-max with Gumbel noise keyed by (seed, position,
    token). Reported logprobs are those of the unmodified model distribution.

    Raises ParameterError for values out of range.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0  # 0 is greedy: the arg-max after penalties and bias
    top_k: int = 0  # 0 keeps every token
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    allowed_tokens: tuple[int, ...] | None = None  # None allows all
    banned_tokens: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int = 0
    logprobs: int | None = None  # alternatives reported per output token; None reports nothing
    prompt_logprobs: int | None = None  # the same for every prompt token but the first

    def __post_init__(self) -> None:
        _check_range("max_tokens", self.max_tokens, 0, 2**31 - 1)
        _check_range("min_tokens", self.min_tokens, 0, self.max_tokens)
        _check_range("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _check_range("top_k", self.top_k, 0, 2**31 - 1)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_range("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_range("seed", self.seed, 0, MAX_SEED)
        _check_positive("top_p", self.top_p, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None:
                _check_range(name, count, 0, MAX_LOGPROBS)
        for token, bias in self.logit_bias:
            _check_range(f"logit_bias[{token}]", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
        for name in ("logit_bias", "allowed_tokens", "banned_tokens", "stop_token_ids"):
            _check_length(name, getattr(self, name))

    def check_vocabulary(self, vocab_size: int, ending_tokens: Sequence[int] = ()) -> None:
        """Raises ParameterError when a listed token id is not one of the model's, or none is left to choose from.

        `ending_tokens` are those that end the sequence, which `min_tokens` withholds at first.
        """
        listed = {
            "logit_bias": [token for token, _ in self.logit_bias],
            "allowed_tokens": self.allowed_tokens or (),
            "banned_tokens": self.banned_tokens,
            "stop_token_ids": self.stop_token_ids,
        }
        for name, tokens in listed.items():
            for token in tokens:
                if not 0 <= token < vocab_size:
                    raise ParameterError(name, f"holds token id {token}; the vocabulary ends at {vocab_size - 1}")
        withheld = set(self.banned_tokens) | (set(ending_tokens) if self.min_tokens else set())
        if len(withheld) >= vocab_size or (self.allowed_tokens is not None and withheld >= set(self.allowed_tokens)):
            name = "banned_tokens" if self.allowed_tokens is None else "allowed_tokens"
            raise ParameterError(name, "leaves no token to choose from")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # as it stands, NaN is refused too
        raise ParameterError(name, f"is {value}; it must be between {low} and {high}")


def _check_positive(name: str, value: float, high: float) -> None:
    if not 0.0 < value <= high:
        raise ParameterError(name, f"is {value}; it must be above 0 and at most {high}")


def _check_length(name: str, tokens: Sequence[object] | None) -> None:
    if tokens is not None and len(tokens) > MAX_TOKEN_LIST:
        raise ParameterError(name, f"lists {len(tokens)} tokens; the limit is {MAX_TOKEN_LIST}")
