"""Which values a sampling parameter may take: one table, for the engine's checks and the schemas. Knows no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_SEED = 2**64 - 1
MAX_LOGPROBS = 20
MAX_TOKEN_LIST = 1024
MAX_PENALTY = 2.0
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 10.0
MAX_TEMPERATURE = 10.0
MAX_LOGIT_BIAS = 100.0
# The longest match of a repeated sequence that is told from a longer one, so that a step's work stays bounded.
MAX_MATCH = 100
# Token sequences: bad words, and what interrupts DRY. A string such as "e" is part of thousands of tokens.
MAX_BAD_WORDS, MAX_BREAKERS = 1024, 16_384
MAX_SEQUENCE_TOKENS = 64

_MAX_INT = 2**31 - 1


class ParameterError(ValueError):
    """A sampling parameter is outside its range. `parameter` names the field; the message says value and limit."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter} {message}")
        self.parameter = parameter


@dataclass(frozen=True)
class Range:
    """From `low` (itself allowed unless `above`) to `high`."""

    low: float
    high: float
    above: bool = False

    def check(self, name: str, value: float) -> None:
        """Raises ParameterError; NaN is in no range."""
        if self.above and not self.low < value <= self.high:
            raise ParameterError(name, f"is {value}; it must be above {self.low:g} and at most {self.high}")
        if not self.low <= value <= self.high:
            raise ParameterError(name, f"is {value}; it must be between {self.low} and {self.high}")


RANGES: Mapping[str, Range] = {
    "max_tokens": Range(0, _MAX_INT),
    "min_tokens": Range(0, _MAX_INT),
    "temperature": Range(0.0, MAX_TEMPERATURE),
    "dynatemp_range": Range(0.0, MAX_TEMPERATURE),
    "dynatemp_exponent": Range(0.0, 10.0, above=True),
    "top_k": Range(0, _MAX_INT),
    "top_p": Range(0.0, 1.0, above=True),
    "min_p": Range(0.0, 1.0),
    "typical_p": Range(0.0, 1.0, above=True),
    "epsilon_cutoff": Range(0.0, 1.0),
    "eta_cutoff": Range(0.0, 1.0),
    "top_n_sigma": Range(0.0, 100.0),
    "top_a": Range(0.0, 1.0),
    "xtc_probability": Range(0.0, 1.0),
    "xtc_threshold": Range(0.0, 1.0),
    "repetition_penalty": Range(MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
    "presence_penalty": Range(-MAX_PENALTY, MAX_PENALTY),
    "frequency_penalty": Range(-MAX_PENALTY, MAX_PENALTY),
    "repeat_last_n": Range(-1, _MAX_INT),
    "dry_multiplier": Range(0.0, 100.0),
    "dry_base": Range(1.0, 10.0),
    "dry_allowed_length": Range(1, MAX_MATCH),
    "dry_range": Range(-1, _MAX_INT),
    "no_repeat_ngram_size": Range(0, MAX_MATCH),
    "mirostat": Range(0, 2),
    "mirostat_tau": Range(0.0, 100.0),
    "mirostat_eta": Range(0.0, 1.0),
    "seed": Range(0, MAX_SEED),
    "logprobs": Range(0, MAX_LOGPROBS),
    "prompt_logprobs": Range(0, MAX_LOGPROBS),
}


def check_length(name: str, tokens: Sequence[object] | None, limit: int = MAX_TOKEN_LIST, what: str = "tokens") -> None:
    """Raises ParameterError for a list longer than `limit`."""
    if tokens is not None and len(tokens) > limit:
        raise ParameterError(name, f"lists {len(tokens)} {what}; the limit is {limit}")


def check_sequences(name: str, sequences: Sequence[Sequence[int]], limit: int) -> None:
    """Raises ParameterError for too many token sequences, and for an empty or too long one."""
    check_length(name, sequences, limit, "sequences")
    for index, sequence in enumerate(sequences):
        if not 1 <= len(sequence) <= MAX_SEQUENCE_TOKENS:
            message = f"holds {len(sequence)} tokens; it must hold between 1 and {MAX_SEQUENCE_TOKENS}"
            raise ParameterError(f"{name}[{index}]", message)
