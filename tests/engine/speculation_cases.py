"""Generated cases of speculation: every strategy under every way of drafting, as a pure function of a seed.

Knows what is asked for, not how it is run.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from drafting_cases import prompt as small_prompt
from engine_driver import Result
from tiny_models import FAMILIES, VOCAB_SIZE

from server.engine.block_pool import BLOCK_SIZE
from server.engine.grammar_spec import Grammar
from server.engine.params import SamplingParams
from server.engine.sampling.order import DEFAULT_ORDER
from server.engine.types import MAX_DRAFT_TOKENS, DraftMethod, Guidance, SequenceRequest, Speculation

# What stands behind the method "draft": a model (the target, an untrained one, a trained one), or what is known to come
# (all of it, none of it, here and there).
Source = Literal["itself", "random", "right", "wrong", "mixed", "trained"]
TINY_SOURCES: tuple[Source, ...] = ("itself", "random", "right", "wrong", "mixed")
TRAINED_VOCAB_SIZE = 336

FOLLOW_UP = 1000  # what the ids of a conversation's second turn have added
_TEMPERATURES = (0.0, 0.0, 0.3, 0.8, 0.8, 1.0, 1.6)
# Texts of so few tokens repeat themselves, for lookups to find; no list of stops takes any of these.
_NARROW = (1, 2, 3)
_MAX_PROMPT, _MAX_TOKENS = 80, 22

GRAMMARS = (
    Grammar("regex", "[a-z ]{3,20}"),
    Grammar("regex", "(ab|[0-9]c)*x"),
    Grammar("choice", json.dumps(["yes, certainly", "yes and no", "no"])),
    Grammar("json_schema", json.dumps({"type": "array", "items": {"enum": [1, 23, "four"]}})),
    Grammar("grammar", 'start: (word " ")+\nword: "thou" | "art" | "wert" | "th"'),
)

Fields = dict[str, object]
Draw = Callable[[random.Random, int], Fields]
"""From a source of chance and the size of the vocabulary to fields of SamplingParams."""


def _some(rng: random.Random, vocab_size: int, count: int) -> tuple[int, ...]:
    return tuple(rng.sample(range(len(_NARROW) + 1, vocab_size), count))


def _biases(rng: random.Random, vocab_size: int) -> Fields:
    biases = (rng.choice((-100.0, -3.0, 2.0, 5.0)) for _ in range(6))
    return {"logit_bias": tuple(zip(_some(rng, vocab_size, 6), biases, strict=True))}


def _words(rng: random.Random, vocab_size: int) -> Fields:
    return {"bad_words": (*(_some(rng, vocab_size, rng.randint(1, 3)) for _ in range(12)), (1, 2), (3, 1))}


def _dry(rng: random.Random, vocab_size: int) -> Fields:
    breakers = (_some(rng, vocab_size, 1), _some(rng, vocab_size, 2)) if rng.random() < 0.5 else ()
    window = rng.choice((-1, 5, 30))
    return {
        "dry_multiplier": 2.0,
        "dry_allowed_length": rng.randint(1, 3),
        "dry_range": window,
        "dry_breakers": breakers,
    }


STRATEGIES: Mapping[str, Draw] = {
    "repetition": lambda rng, _: {"repetition_penalty": rng.choice((0.7, 1.2, 1.8))},
    "presence": lambda rng, _: {"presence_penalty": rng.choice((-1.5, 0.8, 2.0))},
    "frequency": lambda rng, _: {"frequency_penalty": rng.choice((-1.5, 0.6, 2.0))},
    "window": lambda rng, _: {
        "repetition_penalty": 1.5,
        "presence_penalty": 1.0,
        "repeat_last_n": rng.choice((1, 4, 20)),
    },
    "dry": _dry,
    "dynatemp": lambda rng, _: {"dynatemp_range": 0.7, "dynatemp_exponent": rng.choice((0.5, 1.0, 2.0))},
    "sigma": lambda rng, _: {"top_n_sigma": rng.choice((0.8, 1.5))},
    "top_k": lambda rng, _: {"top_k": rng.choice((1, 5, 30))},
    "typical": lambda rng, _: {"typical_p": rng.choice((0.3, 0.9))},
    "epsilon": lambda rng, _: {"epsilon_cutoff": rng.choice((0.003, 0.05))},
    "eta": lambda rng, _: {"eta_cutoff": rng.choice((0.003, 0.05))},
    "top_a": lambda rng, _: {"top_a": rng.choice((0.1, 0.5))},
    "top_p": lambda rng, _: {"top_p": rng.choice((0.5, 0.95))},
    "min_p": lambda rng, _: {"min_p": rng.choice((0.02, 0.2))},
    "xtc": lambda rng, _: {"xtc_probability": rng.choice((0.5, 1.0)), "xtc_threshold": rng.choice((0.02, 0.1))},
    "mirostat_1": lambda rng, _: {"mirostat": 1, "mirostat_tau": rng.choice((1.5, 4.0)), "mirostat_eta": 0.6},
    "mirostat_2": lambda rng, _: {"mirostat": 2, "mirostat_tau": rng.choice((1.5, 4.0)), "mirostat_eta": 0.6},
    "no_repeat": lambda rng, _: {"no_repeat_ngram_size": rng.randint(1, 3)},
    "bad_words": _words,
    "bias": _biases,
    "allowed": lambda rng, size: {"allowed_tokens": _some(rng, size, 40)},
    "narrow": lambda rng, _: {"allowed_tokens": _NARROW[: rng.randint(2, len(_NARROW))]},
    "banned": lambda rng, size: {"banned_tokens": _some(rng, size, 6)},
    "min_tokens": lambda rng, size: {"min_tokens": rng.randint(1, 12), "stop_token_ids": _some(rng, size, 30)},
    "stops": lambda rng, size: {"stop_token_ids": _some(rng, size, 12)},
    "order": lambda rng, _: {"samplers": tuple(rng.sample(DEFAULT_ORDER, rng.randint(3, len(DEFAULT_ORDER))))},
    "no_eos": lambda rng, _: {"ignore_eos": True},
    "prompt_logprobs": lambda rng, _: {"prompt_logprobs": rng.randint(0, 2)},
    "grammar": lambda rng, _: {},
    "guidance": lambda rng, _: {},
}


@dataclass(frozen=True)
class Case:
    """A request and what it is called in a failure."""

    request: SequenceRequest
    strategies: tuple[str, ...]
    drafter: str  # the batch's source or another method; "guided" where a draft model guesses for a guided sequence
    name: str

    @property
    def speculates(self) -> bool:
        """Whether it asks for drafts; the others are company."""
        return self.request.speculation.method != "off"


@dataclass(frozen=True)
class Surroundings:
    """What the requests of a batch have to get along with."""

    num_blocks: int
    max_running: int
    max_step_tokens: int
    preemption: float  # the probability, before every step, that somebody is taken off
    arrival_steps: int  # over which the requests arrive


@dataclass(frozen=True)
class Batch:
    """Requests that run together in one core."""

    seed: int
    family: str  # of the target
    is_bfloat16: bool
    source: Source
    surroundings: Surroundings
    cases: tuple[Case, ...]

    @property
    def vocab_size(self) -> int:
        return TRAINED_VOCAB_SIZE if self.source == "trained" else VOCAB_SIZE


def batches(source: Source, seeds: Sequence[int]) -> Iterator[Batch]:
    """The batches of some seeds with one source of drafts. Shapes go round, so that a few have all of them."""
    for seed in seeds:
        rng = random.Random(f"{source} {seed}")
        family = "trained" if source == "trained" else sorted(FAMILIES)[seed % len(FAMILIES)]
        is_bfloat16 = source != "trained" and seed % 5 == 4
        surroundings = Surroundings(
            num_blocks=(400, 14, 26)[seed % 3],
            max_running=(64, 6, 16, 64, 12, 1)[seed % 6],
            max_step_tokens=(512, 60, 18)[seed // 2 % 3],
            preemption=(0.0, 0.2)[seed // 3 % 2],
            arrival_steps=(1, 8)[seed % 2],
        )
        count = (16, 12, 24, 8, 20, 2)[seed % 6]
        drawn = _Drawn(rng, f"{source}-{seed}-{family}", source)
        cases = tuple(drawn.case(id_, drawn.prompt(), 0) for id_ in range(count))
        yield Batch(seed, family, is_bfloat16, source, surroundings, cases)


def follow_ups(batch: Batch, said: Mapping[int, Result]) -> tuple[Case, ...]:
    """Requests that go on where others have ended, whose blocks are in the prefix cache: some add to the text, some
    continue it as a fork, all draft anew."""
    rng = random.Random(f"{batch.source} {batch.seed} goes on")
    drawn = _Drawn(rng, f"{batch.source}-{batch.seed}-{batch.family}-on", batch.source)
    cases = []
    for case in batch.cases:
        request = case.request
        tokens = tuple(said[request.id].tokens)
        text = request.prompt + tokens
        if rng.random() < 0.5:
            cases.append(drawn.case(FOLLOW_UP + request.id, (*text, *drawn.prompt()[:4]), 0))
        elif tokens:
            cases.append(drawn.case(FOLLOW_UP + request.id, text, len(tokens)))
    return tuple(cases)


class _Drawn:
    """Draws cases that share the beginnings of their prompts."""

    def __init__(self, rng: random.Random, name: str, source: Source) -> None:
        self._rng = rng
        self._name = name
        self._source = source
        self._vocab_size = TRAINED_VOCAB_SIZE if source == "trained" else VOCAB_SIZE
        self._stem = self._any_tokens(_MAX_PROMPT)

    def prompt(self) -> tuple[int, ...]:
        """One in three repeats itself, so that lookups find something; one in three begins like the others."""
        length = self._rng.randint(1, _MAX_PROMPT)
        kind = self._rng.randrange(3)
        if kind == 0:
            return small_prompt(length, self._rng.randrange(50))
        shared = self._rng.randint(0, length) if kind == 1 else 0
        return self._stem[:shared] + self._any_tokens(length - shared)

    def case(self, id_: int, prompt: tuple[int, ...], num_forked: int) -> Case:
        rng = self._rng
        methods: tuple[DraftMethod, ...] = ("draft", "draft", "draft", "draft", "ngram", "suffix", "auto", "off")
        method, k = rng.choice(methods), rng.randint(1, MAX_DRAFT_TOKENS)
        strategies = tuple(rng.sample(sorted(STRATEGIES), rng.choice((1, 1, 2, 2, 3, 4))))
        if method in ("ngram", "suffix") and rng.random() < 0.5:
            strategies = (*strategies[:2], "narrow")
        params = self._params(strategies, len(prompt))
        drafter: str = self._source if method == "draft" else method
        if drafter == "itself" and "guidance" in strategies:
            drafter = "guided"  # a draft model guesses what the target would say unguided
        guided = Guidance(self._any_tokens(rng.randint(1, 20)), rng.choice((0.0, 1.5, 3.0)))
        request = SequenceRequest(
            id_,
            prompt,
            params,
            speculation=Speculation(method, k),
            grammar=rng.choice(GRAMMARS) if "grammar" in strategies else None,
            guidance=guided if "guidance" in strategies else None,
            num_forked=num_forked,
        )
        told = "+".join(strategies)
        return Case(request, strategies, drafter, f"{self._name}-{id_}-{drafter}-k{k}-t{params.temperature}-{told}")

    def _params(self, strategies: Sequence[str], num_prompt: int) -> SamplingParams:
        rng = self._rng
        fields: Fields = {}
        for name in strategies:
            fields |= STRATEGIES[name](rng, self._vocab_size)
        max_tokens = rng.randint(1, _MAX_TOKENS)
        if rng.random() < 0.3:  # a text that ends with its block
            max_tokens = BLOCK_SIZE + -num_prompt % BLOCK_SIZE
        max_tokens = max(max_tokens, int(str(fields.get("min_tokens", 0))))
        fields |= {
            "max_tokens": max_tokens,
            "temperature": rng.choice(_TEMPERATURES),
            "seed": rng.getrandbits(64),
            "logprobs": rng.choice((None, 0, 3)),
        }
        return SamplingParams(**fields)  # type: ignore[arg-type]

    def _any_tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._rng.randrange(self._vocab_size) for _ in range(count))
