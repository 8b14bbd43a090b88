"""From a checked comparison to its strategies, each prepared as the request it would be by itself. Knows no HTTP."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from anyio.lowlevel import checkpoint

from server.api.admission import MAX_CANDIDATES, Prepared, prepare
from server.api.compare_lane import LanePlan
from server.api.compare_request import CompareRequest, Strategy, naming_strategy, with_strategy
from server.api.conversation import tokenize_conversation
from server.api.fork import check_one_source, find_fork_point
from server.api.logprobs import TokenNames
from server.api.parameters import InForce
from server.api.prompts import TextLimit, TokenizedPrompt, tokenize_prompts
from server.api.schemas import asked_seed
from server.api.seeds import derive_seed
from server.api.served_model import ServedModel
from server.api.service import Service
from server.api.shape_completion import CompletionShape
from server.api.shapes import Extras
from server.api.trace import check_trace_size
from server.api.words import Spellings, read_spellings
from server.errors import BadRequest

# In force for the whole comparison, and in each strategy's request by itself what they are by default.
_NOT_TOLD = frozenset({"n", "add_special_tokens"})


async def plan_lanes(service: Service, model: ServedModel, asked: CompareRequest, tenant: str) -> list[LanePlan]:
    """One plan for each strategy. Raises BadRequest, naming the strategy, and what `check_admission` raises."""
    check_one_source(asked, "messages")
    num_strategies = _check_number(asked, service)
    # As for completions: nothing is tokenized for a request that would be refused after it.
    service.engine.check_admission(model.name, num_strategies)
    prompt, asked, is_random = await _read_prompt(service, model, asked, tenant)
    names = TokenNames(model.tokenizer, bool(asked.return_tokens_as_token_ids))
    variants = list(_variants(asked))
    spellings = await read_spellings(model, [variant.asked for variant in variants])
    plans = []
    for variant in variants:
        await checkpoint()  # a long list is some milliseconds of every strategy; other requests' streams go on between
        prepared = variant.prepare(service, model, prompt, tenant, spellings)
        plans.append(_plan(variant, prepared, names, is_random))
    _check_num_candidates(asked, plans)
    check_trace_size(service.engine_info(model), [plan.sequence for plan in plans])
    return plans


@dataclass(frozen=True)
class _Variant:
    """The request that one strategy would be by itself."""

    index: int
    name: str
    asked: CompareRequest
    strategy: Strategy | None  # None where only the seeds differ

    @property
    def own(self) -> frozenset[str] | None:
        return None if self.strategy is None else self.strategy.given

    def prepare(
        self, service: Service, model: ServedModel, prompt: TokenizedPrompt, tenant: str, spellings: Spellings
    ) -> Prepared:
        with naming_strategy(self.index, self.own):
            return prepare(service, model, self.asked, [prompt], tenant, spellings)


def _variants(asked: CompareRequest) -> Iterator[_Variant]:
    if asked.strategies is not None:
        for index, strategy in enumerate(asked.strategies):
            assert strategy.name is not None
            yield _Variant(index, strategy.name, with_strategy(asked, strategy), strategy)
        return
    assert asked.seeds is not None
    for index in range(asked.seeds):
        seed = derive_seed(asked_seed(asked) or 0, index)
        yield _Variant(index, f"seed={seed}", asked.model_copy(update={"seed": seed}), None)


async def _read_prompt(
    service: Service, model: ServedModel, asked: CompareRequest, tenant: str
) -> tuple[TokenizedPrompt, CompareRequest, bool]:
    """The prompt of all, the request with a seed, and whether that was drawn by chance."""
    info = service.engine_info(model)
    if asked.fork is not None:
        point = find_fork_point(service, model, asked, tenant)
        return point.prompt, point.seeded(asked), False
    if asked.messages is not None:
        prompt = await tokenize_conversation(service, model, asked, TextLimit.of_context(model, info))
    else:
        if len(asked.prompt) > 1:
            message = f"prompt has {len(asked.prompt)} prompts; a comparison has 1."
            raise BadRequest(message, "prompt", "invalid_value")
        (prompt,) = await tokenize_prompts(asked.prompt, model, info, asked.add_special_tokens is not False)
    is_random = asked_seed(asked) is None
    return prompt, asked.model_copy(update={"seed": service.random_bits()}) if is_random else asked, is_random


def _plan(variant: _Variant, prepared: Prepared, names: TokenNames, is_random: bool) -> LanePlan:
    """`is_random`: the seed of all strategies without their own was drawn by chance."""
    asked, admitted = variant.asked, prepared.admitted
    ((sequence,), (choice,)) = prepared.sequences, prepared.choices
    params = sequence.params
    if params.logprobs is None:  # what is measured of every answer needs the chosen tokens'
        params = replace(params, logprobs=0)
    in_force = {name: item for name, item in admitted.in_force.items() if name not in _NOT_TOLD}
    if is_random and "seed" not in (variant.own or ()):
        in_force["seed"] = InForce(params.seed, "random")
    extras = Extras(admitted, names, return_token_ids=True, return_prompt_logprobs=False, has_traces=True)
    return LanePlan(
        name=variant.name,
        own=variant.own,
        sequence=replace(sequence, id=variant.index, params=params),
        choice=choice,
        shape=CompletionShape(extras, (), asked.logprobs),
        in_force=in_force,
        speculates=admitted.speculates,
    )


def _check_number(asked: CompareRequest, service: Service) -> int:
    """How many strategies there are. Raises BadRequest beyond what one request may ask for of choices."""
    limit = min(service.settings.max_choices, service.settings.max_sequences)
    if asked.strategies is None:
        name, number = "seeds", asked.seeds or 0
    else:
        name, number = "strategies", len(asked.strategies)
    if number > limit:
        kind = "is" if asked.strategies is None else "has"
        raise BadRequest(f"{name} {kind} {number}; the limit is {limit}.", name, "invalid_value")
    return number


def _check_num_candidates(asked: CompareRequest, plans: Sequence[LanePlan]) -> None:
    """Every token of every strategy comes with its log-probability, and with the alternatives asked for."""
    wanted = sum(plan.sequence.params.max_tokens * (1 + (plan.sequence.params.logprobs or 0)) for plan in plans)
    if wanted > MAX_CANDIDATES:
        name = "strategies" if asked.seeds is None else "seeds"
        message = f"{name} ask for up to {wanted} log-probabilities in one answer; the limit is {MAX_CANDIDATES}."
        raise BadRequest(message, name, "invalid_value")
