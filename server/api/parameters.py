"""A request's fields to sampling parameters, with where each value came from. It knows no prompt text and no HTTP."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from server.api.schemas import CompletionRequest, GenerationRequest
from server.api.schemas_chat import ChatRequest
from server.api.seeds import derive_seed
from server.api.served_model import GenerationDefaults
from server.api.settings import ApiSettings
from server.engine.params import ParameterError, SamplingParams
from server.engine.types import EngineInfo
from server.errors import BadRequest

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's; chat defaults to the rest of the context
_MAX_TOKENS = 2**31 - 1

Source = Literal["request", "model", "server", "random"]

# Sampling parameters whose field in requests has another name.
_FIELDS = {"allowed_tokens": "allowed_token_ids", "banned_tokens": "banned_token_ids"}

T = TypeVar("T")


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
    in_force: Mapping[str, InForce]  # by the request's field names

    def for_choice(self, index: int, max_tokens: int) -> SamplingParams:
        """Raises BadRequest when min_tokens exceeds max_tokens."""
        with _parameter_errors_as_bad_requests():
            return replace(self.params, max_tokens=max_tokens, seed=derive_seed(self.params.seed, index))


def resolve(
    asked: CompletionRequest | ChatRequest, defaults: GenerationDefaults, info: EngineInfo, random_seed: int
) -> Resolved:
    """Request before checkpoint before server. Raises BadRequest for a value out of range or out of the vocabulary."""
    server = SamplingParams()
    chosen = _Choices()
    pick = chosen.pick
    top_k = None if asked.top_k is None else max(0, asked.top_k)  # others call "every token" -1
    with _parameter_errors_as_bad_requests():
        params = SamplingParams(
            max_tokens=_MAX_TOKENS,  # until the prompt's length is known
            min_tokens=pick("min_tokens", asked.min_tokens, None, server.min_tokens),
            temperature=pick("temperature", asked.temperature, defaults.temperature, server.temperature),
            top_k=pick("top_k", top_k, defaults.top_k, server.top_k),
            top_p=pick("top_p", asked.top_p, defaults.top_p, server.top_p),
            min_p=pick("min_p", asked.min_p, defaults.min_p, server.min_p),
            repetition_penalty=pick(
                "repetition_penalty", asked.repetition_penalty, defaults.repetition_penalty, server.repetition_penalty
            ),
            presence_penalty=pick("presence_penalty", asked.presence_penalty, None, server.presence_penalty),
            frequency_penalty=pick("frequency_penalty", asked.frequency_penalty, None, server.frequency_penalty),
            logit_bias=pick("logit_bias", asked.logit_bias, None, server.logit_bias),
            allowed_tokens=pick("allowed_token_ids", asked.allowed_token_ids, None, server.allowed_tokens),
            banned_tokens=pick("banned_token_ids", asked.banned_token_ids, None, server.banned_tokens),
            stop_token_ids=pick("stop_token_ids", asked.stop_token_ids, None, server.stop_token_ids),
            ignore_eos=pick("ignore_eos", asked.ignore_eos, None, server.ignore_eos),
            seed=chosen.pick_seed(asked.seed, random_seed),
            logprobs=num_logprobs(asked),
            prompt_logprobs=_num_prompt_logprobs(asked),
        )
        ending_tokens = (*params.stop_token_ids, *(() if params.ignore_eos else info.eos_token_ids))
        params.check_vocabulary(info.vocab_size, ending_tokens)
    return Resolved(params, _asked_max_tokens(asked), chosen.in_force)


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


@contextmanager
def _parameter_errors_as_bad_requests() -> Iterator[None]:
    try:
        yield
    except ParameterError as error:
        name = _FIELDS.get(error.parameter, error.parameter)
        raise BadRequest(f"{name}{str(error).removeprefix(error.parameter)}.", name, "invalid_value") from None


class _Choices:
    """Picks values and remembers who chose them."""

    def __init__(self) -> None:
        self.in_force: dict[str, InForce] = {}

    def pick(self, field: str, asked: T | None, recommended: T | None, server: T) -> T:
        if asked is not None:
            self.in_force[field] = InForce(asked, "request")
            return asked
        if recommended is not None:
            self.in_force[field] = InForce(recommended, "model")
            return recommended
        self.in_force[field] = InForce(server, "server")
        return server

    def pick_seed(self, asked: int | None, random_seed: int) -> int:
        seed = random_seed if asked is None else asked
        self.in_force["seed"] = InForce(seed, "random" if asked is None else "request")
        return seed
