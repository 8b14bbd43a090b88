"""What a client may send to /v1/compare: a completion's or a chat's prompt, shared parameters, and strategies."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONEncoder
from typing import Annotated

from pydantic import BeforeValidator, Field

from server.api.accepted import COMPLETION_UNSUPPORTED, Unsupported, keep_supported
from server.api.json_guard import shown
from server.api.schemas import CompletionRequest, GenerationRequest, Logprobs
from server.api.schemas_chat import Messages
from server.api.structured import StructuredFields
from server.api.validation import validate
from server.errors import BadRequest

MAX_STRATEGIES = 16
MAX_NAME_LENGTH = 64

# Fields of requests that belong to the whole comparison, so that no strategy has one of its own.
_OF_THE_WHOLE = frozenset(
    {
        "model",
        "n",
        "stream",
        "stream_options",
        "prompt_logprobs",
        "return_tokens_as_token_ids",
        "return_token_ids",
        "return_parameters",
        "add_special_tokens",
        "cache_salt",
    }
)

_WIDTHS = frozenset({"beam_width", "num_beams"})
# Fields that say the same thing: a strategy's takes the place of the comparison's, whichever either uses.
_SAME = (frozenset({"max_tokens", "max_completion_tokens"}), _WIDTHS, frozenset(StructuredFields.model_fields))

_UNSUPPORTED: Mapping[str, Unsupported] = {
    **COMPLETION_UNSUPPORTED,
    "echo": Unsupported((False,), "only false"),
    "n": Unsupported((1,), "one answer per strategy; for several of the same use seeds"),
    "prompt_logprobs": Unsupported((), "none, as the prompt is the same for all"),
    "return_parameters": Unsupported((True,), "only true"),
    "return_token_ids": Unsupported((True,), "only true"),
    "stream_options": Unsupported((), "none; the usage comes with the last event"),
}


class Strategy(GenerationRequest):
    """One way of decoding: what it sets goes before what the comparison sets for all. Without a name it is called by
    its parameters."""

    model: str = ""  # not to be set
    name: str | None = None
    logprobs: Logprobs | None = None

    @property
    def given(self) -> frozenset[str]:
        """The parameters it sets."""
        return frozenset(self.model_fields_set - {"name"})


def read_strategies(value: object) -> tuple[Strategy, ...]:
    """Strategies of different names. Raises BadRequest naming the strategy, e.g. strategies[3].top_p."""
    if not isinstance(value, list) or not value:
        message = f"strategies is {shown(value)}; it must be an array of 1 to {MAX_STRATEGIES} objects."
        raise BadRequest(message, "strategies", "invalid_value")
    if len(value) > MAX_STRATEGIES:
        message = f"strategies has {len(value)} entries; the limit is {MAX_STRATEGIES}."
        raise BadRequest(message, "strategies", "invalid_value")
    strategies = [_read_strategy(index, item) for index, item in enumerate(value)]
    taken: dict[str, int] = {}
    for index, strategy in enumerate(strategies):
        if strategy.name in taken:
            parameter = f"strategies[{index}].name"
            message = f"{parameter} is {shown(strategy.name)}, as is that of strategies[{taken[strategy.name]}]."
            raise BadRequest(message, parameter, "invalid_value")
        if strategy.name is not None:
            taken[strategy.name] = index
    return tuple(
        strategy if strategy.name is not None else _named(strategy, item, taken)
        for strategy, item in zip(strategies, value, strict=True)
    )


class CompareRequest(CompletionRequest):
    """POST /v1/compare. One of prompt, messages and fork; one of strategies and seeds."""

    messages: Messages | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: Annotated[dict[str, object], Field(max_length=64)] | None = None
    strategies: (
        Annotated[
            tuple[Strategy, ...], BeforeValidator(read_strategies, json_schema_input_type=list[dict[str, object]])
        ]
        | None
    ) = None
    seeds: Annotated[int, Field(ge=1, le=MAX_STRATEGIES)] | None = None


_KNOWN = frozenset(CompareRequest.model_fields) - frozenset(_UNSUPPORTED)
_STRATEGY_KNOWN = frozenset(Strategy.model_fields) - _OF_THE_WHOLE


def read_compare_request(body: Mapping[str, object]) -> CompareRequest:
    """Raises BadRequest."""
    asked = validate(CompareRequest, _without_nulls(keep_supported(body, _KNOWN, _UNSUPPORTED)))
    if (asked.strategies is None) == (asked.seeds is None):
        given = "is missing, and so is" if asked.seeds is None else "is given besides"
        message = f"strategies {given} seeds; there must be one of them."
        code = "missing_required_parameter" if asked.seeds is None else "invalid_value"
        raise BadRequest(message, "strategies", code)
    for name in ("add_generation_prompt", "chat_template_kwargs"):
        value = getattr(asked, name)
        if value is not None and asked.messages is None:
            message = f"{name} is {shown(value)} but there are no messages that it could apply to."
            raise BadRequest(message, name, "invalid_value")
    return asked


def with_strategy(asked: CompareRequest, strategy: Strategy) -> CompareRequest:
    """The request as if the strategy's parameters had been sent with it, in place of what says the same."""
    own = {name: getattr(strategy, name) for name in strategy.given}
    replaced = {name for names in _SAME if names & own.keys() for name in names}
    if own.get("use_beam_search") is False:
        replaced |= _WIDTHS
    elif own.keys() & _WIDTHS:
        replaced.add("use_beam_search")
    return asked.model_copy(update={**dict.fromkeys(replaced), **own})


@contextmanager
def naming_strategy(index: int, own: frozenset[str] | None) -> Iterator[None]:
    """Say of a mistake in a strategy whose it is. A parameter it did not set itself keeps its name, and so does
    everything where there are only seeds, `own` being None."""
    where = f"strategies[{index}]"
    try:
        yield
    except BadRequest as error:
        parameter, message = error.parameter, error.message
        if own is None or parameter is None or parameter.startswith(where):
            raise
        if parameter.partition(".")[0].partition("[")[0] not in own:
            raise BadRequest(f"{where}: {message}", parameter, error.code, error.status) from None
        qualified = f"{where}.{parameter}"
        told = message.replace(parameter, qualified, 1) if message.startswith(parameter) else f"{where}: {message}"
        raise BadRequest(told, qualified, error.code, error.status) from None


def _read_strategy(index: int, value: object) -> Strategy:
    where = f"strategies[{index}]"
    if not isinstance(value, dict):
        raise BadRequest(f"{where} is {shown(value)}; it must be an object.", where, "invalid_value")
    with naming_strategy(index, _STRATEGY_KNOWN):
        known = keep_supported(value, _STRATEGY_KNOWN, COMPLETION_UNSUPPORTED, where + ".")
        strategy = validate(Strategy, _without_nulls(known))
    name = strategy.name
    if name is not None and not 1 <= len(name) <= MAX_NAME_LENGTH:
        parameter = f"{where}.name"
        message = f"{parameter} has {len(name)} characters; it must have between 1 and {MAX_NAME_LENGTH}."
        raise BadRequest(message, parameter, "invalid_value")
    return strategy


def _named(strategy: Strategy, item: Mapping[str, object], taken: dict[str, int]) -> Strategy:
    """Called by its parameters as they were sent, with a number if another is called so."""
    pairs = (f"{key}={_json(value)}" for key, value in item.items() if value is not None)
    plain = (" ".join(pairs) or "default")[: MAX_NAME_LENGTH - 5]
    name = next(
        name
        for number in range(1, MAX_STRATEGIES + 2)
        if (name := plain if number == 1 else f"{plain} ({number})") not in taken
    )
    taken[name] = -1
    return strategy.model_copy(update={"name": name})


def _json(value: object) -> str:
    """As much of the JSON as may have a place in a name, however long all of it is."""
    text = ""
    for piece in JSONEncoder().iterencode(value):
        text += piece
        if len(text) > MAX_NAME_LENGTH:
            break
    return text


def _without_nulls(fields: Mapping[str, object]) -> dict[str, object]:
    """Null means the same as leaving the field out."""
    return {name: value for name, value in fields.items() if value is not None}
