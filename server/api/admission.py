"""From a checked request to the engine's sequences: parameters, limits, seeds. It knows no response shape."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from server.api.beams import read_beams, searching
from server.api.choice import Choice, ChoiceOptions
from server.api.guidance import Guided, guidance_in_force, read_guidance
from server.api.parameters import InForce, Resolved, check_choices, resolve
from server.api.prompts import TokenizedPrompt, fit_max_tokens
from server.api.run import Admitted
from server.api.schemas import CompletionRequest
from server.api.schemas_chat import ChatRequest
from server.api.served_model import ServedModel
from server.api.service import Service
from server.api.speculative import read_speculation
from server.api.stop_strings import StopStrings
from server.api.structured import StructuredFields, grammar_refused, read_grammar
from server.api.trace import check_trace_size, read_trace
from server.api.words import Spellings
from server.engine.params import SamplingParams
from server.engine.types import SequenceRequest, Speculation
from server.errors import BadRequest

# Log-probabilities in one answer, over all its tokens, choices and alternatives: some ten megabytes of JSON.
MAX_CANDIDATES = 131_072
_NO_STOPS = StopStrings(())


@dataclass(frozen=True)
class Prepared:
    """Everything that is settled before the engine is asked, so that nothing can fail between asking and answering."""

    admitted: Admitted
    sequences: Sequence[SequenceRequest]
    choices: Sequence[Choice]


def prepare(
    service: Service,
    model: ServedModel,
    asked: CompletionRequest | ChatRequest,
    prompts: Sequence[TokenizedPrompt],
    tenant: str,
    spellings: Spellings,
) -> Prepared:
    """The request's sequences, n for each prompt. Raises BadRequest, or EngineUnavailable for a model never loaded."""
    info = service.engine_info(model)
    n = check_choices(asked, len(prompts), service.settings)
    resolved = resolve(asked, model.defaults, info, service.random_bits(), spellings)
    speculation = read_speculation(asked.speculative, service.settings.speculation, info)
    rules = read_beams(asked, n)
    if rules is not None:
        resolved, speculation = searching(resolved, rules, asked), Speculation()
    guided = read_guidance(service, model, asked, prompts)
    is_chat = isinstance(asked, ChatRequest)
    limits = _limits(
        prompts, guided, lambda prompt: fit_max_tokens(prompt, resolved.max_tokens, is_chat, info.context_length)
    )
    _check_num_candidates(resolved.params, n, prompts, limits)
    grammar, trace = read_grammar(asked), read_trace(asked.trace, info, has_beams=rules is not None)
    salt = cache_salt(tenant, asked.cache_salt)
    sequences = [
        SequenceRequest(
            id=index,
            prompt=prompts[index // n].tokens,
            params=resolved.for_choice(index, limits[index // n]),
            cache_salt=salt,
            speculation=speculation,
            grammar=grammar,
            guidance=None if guided is None else guided[index // n].guidance,
            beams=None if rules is None else replace(rules, rank=index % n),
            num_forked=prompts[index // n].num_forked,
            trace=trace,
        )
        for index in range(n * len(prompts))
    ]
    check_trace_size(info, sequences)
    seeds = [sequence.params.seed for sequence in sequences]
    options = _choice_options(asked, resolved)
    choices = [Choice(model.tokenizer, options) for _ in sequences]

    def tell() -> Mapping[str, InForce]:
        return {
            **resolved.told(limits),
            **guidance_in_force(asked, guided),
            **_structured_in_force(asked),
            "speculative": InForce(vars(speculation), "server" if asked.speculative is None else "request"),
        }

    speculates = speculation.method != "off"
    return Prepared(Admitted(prompts, n, seeds, tell, speculates), sequences, choices)


def _limits(
    prompts: Sequence[TokenizedPrompt], guided: Sequence[Guided] | None, fit: Callable[[TokenizedPrompt], int]
) -> list[int]:
    """How many tokens each prompt's sequences may have: as many as fit behind it, and behind what guides it away."""
    limits = [fit(prompt) for prompt in prompts]
    if guided is None:
        return limits
    return [min(limit, fit(one.prompt)) for limit, one in zip(limits, guided, strict=True)]


def _choice_options(asked: CompletionRequest | ChatRequest, resolved: Resolved) -> ChoiceOptions:
    return ChoiceOptions(
        StopStrings(asked.stop) if asked.stop else _NO_STOPS,
        bool(asked.include_stop_str_in_output),
        resolved.params.min_tokens,
        partial(grammar_refused, asked),
    )


def _structured_in_force(asked: StructuredFields) -> dict[str, InForce]:
    """What was asked of the answer's form, as it was sent."""
    given = {name: getattr(asked, name) for name in StructuredFields.model_fields}
    return {name: InForce(value, "request") for name, value in given.items() if value is not None}


def _check_num_candidates(
    params: SamplingParams, n: int, prompts: Sequence[TokenizedPrompt], limits: list[int]
) -> None:
    """Bound the log-probabilities a request can ask for: every token comes with so many candidates, in every choice."""
    wanted = 0
    for prompt, max_tokens in zip(prompts, limits, strict=True):
        for count, tokens in ((params.prompt_logprobs, len(prompt.tokens)), (params.logprobs, max_tokens)):
            wanted += 0 if count is None else n * tokens * (count + 1)
    if wanted > MAX_CANDIDATES:
        name = "logprobs" if params.prompt_logprobs is None else "prompt_logprobs"
        message = f"{name} asks for up to {wanted} log-probabilities in one answer; the limit is {MAX_CANDIDATES}."
        raise BadRequest(message, name, "invalid_value")


def cache_salt(tenant: str, asked: str | None) -> str:
    """Requests share cached prefixes when both their key and their own salt agree."""
    return f"{tenant}|{asked or ''}" if tenant or asked else ""
