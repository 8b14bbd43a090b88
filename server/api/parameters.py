"""A request's fields to sampling parameters, with where each value came from. It knows no prompt text and no HTTP."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

from server.api.json_guard import shown
from server.api.schemas import FIELDS, CompletionRequest, GenerationRequest, asked_parameters
from server.api.schemas_chat import ChatRequest
from server.api.seeds import derive_seed
from server.api.served_model import GenerationDefaults
from server.api.settings import ApiSettings
from server.api.strategies import preset_values
from server.api.words import DEFAULT_BREAKERS, Spellings, bad_word_tokens, breaker_tokens
from server.engine.params import ParameterError, SamplingParams
from server.engine.sampling.order import SAMPLERS, SHAPING, stages_of
from server.engine.types import EngineInfo
from server.errors import BadRequest

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's; chat defaults to the rest of the context
_MAX_TOKENS = 2**31 - 1

Source = Literal["request", "preset", "model", "server", "random"]
Values = Mapping[str, object]

# By the names of SamplingParams, as everything below except what is told to clients.
_SERVER: Values = {**vars(SamplingParams()), "dry_breakers": DEFAULT_BREAKERS}


@dataclass(frozen=True)
class InForce:
    """A parameter's value and who chose it."""

    value: object
    source: Source


@dataclass(frozen=True)
class Resolved:
    """The sampling parameters of a request, short of what depends on the prompt and on which choice it is for."""

    params: SamplingParams
    max_tokens: int | None  # None: the default
    tell: Callable[[], Mapping[str, InForce]]

    @cached_property
    def in_force(self) -> Mapping[str, InForce]:
        """By the request's field names; worked out for those who ask."""
        return self.tell()

    def for_choice(self, index: int, max_tokens: int) -> SamplingParams:
        """Raises BadRequest when min_tokens exceeds max_tokens."""
        try:
            return self.params.for_sequence(max_tokens, derive_seed(self.params.seed, index))
        except ParameterError as error:
            raise _bad_request(error) from None

    def told(self, limits: Sequence[int]) -> Mapping[str, InForce]:
        """`in_force`, with the largest of the prompts' limits for a max_tokens that was left to the server."""
        asked = self.in_force["max_tokens"]
        return {**self.in_force, "max_tokens": replace(asked, value=max(limits)) if asked.value is None else asked}


def resolve(
    asked: CompletionRequest | ChatRequest,
    defaults: GenerationDefaults,
    info: EngineInfo,
    random_seed: int,
    spellings: Spellings,
) -> Resolved:
    """Request before preset before checkpoint before server.

    Raises BadRequest for a value out of range or out of the vocabulary, and for one that no stage of the order would
    look at.
    """
    own = asked_parameters(asked)
    layers: Sequence[tuple[Source, Values]] = (
        ("random", {"seed": random_seed}),
        ("model", defaults.given()),
        ("preset", preset_values(asked.strategy)),
        ("request", own),
    )
    given = {name: value for _, values in layers for name, value in values.items()}
    silenced = _silenced(given, own)
    values: dict[str, Any] = given | {name: _SERVER[name] for name in silenced}  # as SamplingParams has them, or worse
    if "bad_words" in values:
        values["bad_words"] = bad_word_tokens(values["bad_words"], spellings)
    if values.get("dry_multiplier"):
        values["dry_breakers"] = breaker_tokens(values.get("dry_breakers", DEFAULT_BREAKERS), spellings)
    else:
        values.pop("dry_breakers", None)
    values["max_tokens"] = _MAX_TOKENS  # until the prompt's length is known
    values["logprobs"] = num_logprobs(asked)
    values["prompt_logprobs"] = _num_prompt_logprobs(asked)
    try:
        params = SamplingParams.of(values)
        ending_tokens = (*params.stop_token_ids, *(() if params.ignore_eos else info.eos_token_ids))
        params.check_vocabulary(info.vocab_size, ending_tokens)
    except ParameterError as error:
        raise _bad_request(error) from None
    return Resolved(params, _asked_max_tokens(asked), lambda: _told(layers, silenced, asked))


def _silenced(given: Values, own: Values) -> Mapping[str, str]:
    """The parameters of stages that are left out, which get their neutral values: to the one that leaves them out.

    Raises BadRequest for one asked for.
    """
    samplers, mirostat = given.get("samplers"), given.get("mirostat")
    if samplers is None and not mirostat:
        return {}
    listed = set(SAMPLERS if samplers is None else cast(Sequence[str], samplers))
    silenced: dict[str, str] = {}
    for name in FIELDS:
        stages = stages_of(name)
        if not stages:
            continue
        if listed.isdisjoint(stages):
            reason = f"samplers leaves out {' and '.join(stages)}"
            silenced[name] = "samplers"
        elif mirostat and SHAPING.isdisjoint(stages):
            reason = f"mirostat is {shown(mirostat)}, which takes the place of {stages[0]}"
            silenced[name] = "mirostat"
        else:
            continue
        if own.get(name, _SERVER[name]) != _SERVER[name]:
            field = FIELDS[name]
            raise BadRequest(f"{field} is {shown(own[name])} but {reason}.", field, "invalid_value")
    return silenced


def _told(
    layers: Sequence[tuple[Source, Values]], silenced: Mapping[str, str], asked: CompletionRequest | ChatRequest
) -> dict[str, InForce]:
    """The server's defaults, each covered by the last of `layers` that has a value for it."""
    chosen = {name: InForce(_SERVER[name], "server") for name in FIELDS}
    for source, values in layers:
        chosen |= {name: InForce(value, source) for name, value in values.items()}
    chosen |= {name: InForce(_SERVER[name], chosen[silencer].source) for name, silencer in silenced.items()}
    return {FIELDS[name]: _as_sent(name, item) for name, item in chosen.items()} | _beside_sampling(asked)


def _as_sent(name: str, item: InForce) -> InForce:
    """In the form a request has it in, so that it can be sent back."""
    if name != "logit_bias":
        return item
    return replace(item, value={str(token): bias for token, bias in cast(Sequence[tuple[int, float]], item.value)})


def _beside_sampling(asked: CompletionRequest | ChatRequest) -> dict[str, InForce]:
    """What else the answer is a function of."""
    is_chat = isinstance(asked, ChatRequest)
    defaults: tuple[tuple[str, object, object], ...] = (
        ("strategy", asked.strategy, None),
        ("max_tokens", _asked_max_tokens(asked), None),
        ("n", asked.n, 1),
        ("stop", list(asked.stop) or None, []),
        ("include_stop_str_in_output", asked.include_stop_str_in_output, False),
        ("add_special_tokens", asked.add_special_tokens, not is_chat),
    )
    return {
        name: InForce(default, "server") if value is None else InForce(value, "request")
        for name, value, default in defaults
    }


def check_choices(request: GenerationRequest, num_prompts: int, settings: ApiSettings) -> int:
    """`n`, checked. Raises BadRequest before anything is made n times."""
    n = 1 if request.n is None else request.n
    if not 1 <= n <= settings.max_choices:
        raise BadRequest(f"n is {n}; it must be between 1 and {settings.max_choices}.", "n", "invalid_value")
    if n * num_prompts > settings.max_sequences:
        raise BadRequest(
            f"{num_prompts} prompts times n = {n} are {n * num_prompts} sequences; "
            f"the limit is {settings.max_sequences}.",
            "n",
            "invalid_value",
        )
    return n


def num_logprobs(request: CompletionRequest | ChatRequest) -> int | None:
    """Alternatives per output token, or None for no logprobs. Raises BadRequest for top_logprobs without logprobs."""
    if isinstance(request, CompletionRequest):
        return request.logprobs
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs is not None:
        message = f"top_logprobs is {request.top_logprobs}; it needs logprobs to be true."
        raise BadRequest(message, "top_logprobs", "invalid_value")
    return None


def _num_prompt_logprobs(request: CompletionRequest | ChatRequest) -> int | None:
    """Echoed prompts with logprobs need the prompt's too."""
    echoed = request.logprobs if isinstance(request, CompletionRequest) and request.echo else None
    wanted = [count for count in (request.prompt_logprobs, echoed) if count is not None]
    return max(wanted, default=None)


def _asked_max_tokens(request: GenerationRequest) -> int | None:
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise BadRequest(
            f"max_completion_tokens is {new} but max_tokens, its older name, is {old}; send one of them.",
            "max_completion_tokens",
            "invalid_value",
        )
    return old if new is None else new


def _bad_request(error: ParameterError) -> BadRequest:
    name, bracket, rest = error.parameter.partition("[")
    field = FIELDS.get(name, name) + bracket + rest
    return BadRequest(f"{field}{str(error).removeprefix(error.parameter)}.", field, "invalid_value")
