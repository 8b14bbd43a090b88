"""How one sequence is to be decoded: the validated sampling parameters. Knows no torch and no HTTP."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields
from functools import cached_property

from server.engine.sampling.order import DEFAULT_ORDER, MIROSTAT, SAMPLERS, SHAPING
from server.engine.sampling.program import DrawValues, program_of
from server.engine.sampling.ranges import (
    MAX_BAD_WORDS,
    MAX_BREAKERS,
    MAX_LOGIT_BIAS,
    RANGES,
    Range,
    check_length,
    check_sequences,
)
from server.engine.sampling.ranges import MAX_LOGPROBS as MAX_LOGPROBS
from server.engine.sampling.ranges import MAX_SEED as MAX_SEED
from server.engine.sampling.ranges import MAX_TOKEN_LIST as MAX_TOKEN_LIST
from server.engine.sampling.ranges import ParameterError as ParameterError

_LISTS = frozenset(
    {"logit_bias", "allowed_tokens", "banned_tokens", "stop_token_ids", "bad_words", "dry_breakers", "samplers"}
)
_BIAS = Range(-MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)


@dataclass(frozen=True)
class SamplingParams:
    """Everything, besides the model and the prompt, that the output tokens are a function of.

    First come the constraints: a grammar's mask, allowed/banned tokens and min_tokens, bad_words,
    no_repeat_ngram_size, logit_bias. Then the stages of `samplers` in that order, those left out not at all. With
    mirostat only its penalties, dry and temperature are applied, and mirostat cuts off instead of the rest. Last the
    arg-max with Gumbel noise keyed by (seed, position, token). The default values leave the distribution as it is.
    Reported logprobs are those of the unmodified model distribution.

    Raises ParameterError for values out of range.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0  # 0 keeps the arg-max alone
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
    samplers: tuple[str, ...] = DEFAULT_ORDER
    dynatemp_range: float = 0.0  # temperature - range .. temperature + range, by entropy
    dynatemp_exponent: float = 1.0
    top_n_sigma: float = 0.0  # 0 keeps every token
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    top_a: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_last_n: int = -1  # last tokens of prompt and output the three penalties look at; -1 is all, 0 none
    dry_multiplier: float = 0.0  # 0 is off
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = -1  # last tokens of prompt and output searched for repetitions; -1 is all, 0 none
    dry_breakers: tuple[tuple[int, ...], ...] = ()  # token sequences no repetition extends across
    no_repeat_ngram_size: int = 0  # 0 is off
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that may not be completed
    mirostat: int = 0  # 1 and 2 are the paper's two algorithms
    mirostat_tau: float = 5.0  # the surprise aimed at, in bits
    mirostat_eta: float = 0.1

    def __post_init__(self) -> None:
        own = vars(self)
        self._check({name for name, default in _DEFAULTS.items() if own[name] != default})

    def _check(self, names: Set[str]) -> None:
        """Raises ParameterError for the first fault of the fields so called; the others are as they are by default."""
        own = vars(self)
        for name, allowed in RANGES.items():
            if name in names and own[name] is not None:
                allowed.check(name, own[name])
        _check_min_tokens(self.min_tokens, self.max_tokens)
        if names.isdisjoint(_LISTS):
            return
        for token, bias in self.logit_bias:
            _BIAS.check(f"logit_bias[{token}]", bias)
        for name in ("logit_bias", "allowed_tokens", "banned_tokens", "stop_token_ids"):
            check_length(name, getattr(self, name))
        check_sequences("bad_words", self.bad_words, 2 * MAX_BAD_WORDS)  # a word may have two spellings
        check_sequences("dry_breakers", self.dry_breakers, MAX_BREAKERS)
        _check_samplers(self.samplers)

    @classmethod
    def of(cls, values: Mapping[str, object]) -> "SamplingParams":
        """As the constructor, which takes longer: it sets every field by itself, and checks all of them."""
        made = object.__new__(cls)
        vars(made).update(_DEFAULTS)
        vars(made).update(values)
        made._check(values.keys())
        return made

    def for_sequence(self, max_tokens: int, seed: int) -> "SamplingParams":
        """These with another length and seed, which are taken as being in range. Nothing that is the same is checked
        again: this is done for every sequence.

        Raises ParameterError when min_tokens exceeds max_tokens.
        """
        _check_min_tokens(self.min_tokens, max_tokens)
        own, made = vars(self), object.__new__(SamplingParams)
        if len(own) > len(_DEFAULTS):  # what was worked out may depend on the seed
            own = {name: own[name] for name in _DEFAULTS}
        vars(made).update(own, max_tokens=max_tokens, seed=seed)
        return made

    def check_vocabulary(self, vocab_size: int, ending_tokens: Sequence[int] = ()) -> None:
        """Raises ParameterError when a listed token id is not one of the model's, or none is left to choose from.

        `ending_tokens` are those that end the sequence, which `min_tokens` withholds at first.
        """
        for name, tokens in self._listed().items():
            if tokens and not 0 <= min(tokens) <= max(tokens) < vocab_size:  # there may be many, and mostly all are
                token = next(token for token in tokens if not 0 <= token < vocab_size)
                raise ParameterError(name, f"holds token id {token}; the vocabulary ends at {vocab_size - 1}")
        num_withheld = len(self.banned_tokens) + len(ending_tokens) + len(self.bad_words)
        if self.allowed_tokens is None and num_withheld < vocab_size:
            return
        allowed = set(range(vocab_size) if self.allowed_tokens is None else self.allowed_tokens)
        allowed -= {*self.banned_tokens, *(ending_tokens if self.min_tokens else ())}
        if not allowed:
            name = "banned_tokens" if self.allowed_tokens is None else "allowed_tokens"
            raise ParameterError(name, "leaves no token to choose from")
        if not allowed - {word[0] for word in self.bad_words if len(word) == 1}:
            raise ParameterError("bad_words", "leaves no token to choose from")

    @cached_property
    def is_greedy(self) -> bool:
        """Whether only the most likely token is left where the temperature stands in the order."""
        return self.temperature == 0 and self.dynatemp_range == 0 and "temperature" in self.samplers

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """What is done to a row's logits, in turn. A greedy row is decided where the temperature stands.

        Worked out once, for choices are made at every step.
        """
        listed = [name for name in self.samplers if name in SHAPING or not self.mirostat]
        names = [name for name in listed if SAMPLERS[name].applies(self)]
        if self.is_greedy:
            names = names[: names.index("temperature") + 1]
        return (*names, MIROSTAT) if self.mirostat else tuple(names)

    @cached_property
    def program(self) -> bytes | None:
        """The stages as the native sampler reads them; None when it does not know them all."""
        if self.dynatemp_range > 0:
            return None
        penalties = self.repetition_penalty, self.frequency_penalty, self.presence_penalty
        values = DrawValues(self.seed, self.top_k, *penalties, self.temperature, self.top_p, self.min_p)
        return program_of(self.stages, values)

    @cached_property
    def is_constrained(self) -> bool:
        """Whether a constraint is in force from the first token to the last."""
        lists = self.banned_tokens or self.logit_bias or self.bad_words
        return bool(lists or self.allowed_tokens is not None or self.no_repeat_ngram_size)

    def _listed(self) -> Mapping[str, Sequence[int]]:
        return {
            "logit_bias": [token for token, _ in self.logit_bias],
            "allowed_tokens": self.allowed_tokens or (),
            "banned_tokens": self.banned_tokens,
            "stop_token_ids": self.stop_token_ids,
            "bad_words": [token for word in self.bad_words for token in word],
            "dry_breakers": [token for breaker in self.dry_breakers for token in breaker],
        }


_DEFAULTS: Mapping[str, object] = {field.name: field.default for field in fields(SamplingParams)}


def _check_min_tokens(min_tokens: int, max_tokens: int) -> None:
    if min_tokens > max_tokens:
        Range(0, max_tokens).check("min_tokens", min_tokens)


def _check_samplers(samplers: Sequence[str]) -> None:
    if samplers is DEFAULT_ORDER:
        return
    for index, name in enumerate(samplers):
        if name not in SAMPLERS:
            raise ParameterError(f"samplers[{index}]", f"is {name[:80]!r}; it must be one of {', '.join(SAMPLERS)}")
        if name in samplers[:index]:
            raise ParameterError(f"samplers[{index}]", f"is {name!r}, which is listed before; a stage comes only once")
