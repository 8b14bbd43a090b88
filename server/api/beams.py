"""The request's fields of beam search, to the engine's rules. It knows no prompt and no engine."""

from collections.abc import Mapping
from dataclasses import replace

from server.api.json_guard import shown
from server.api.parameters import InForce, Resolved
from server.api.schemas import GenerationRequest
from server.api.schemas_decoding import BeamFields
from server.api.structured import grammar_refused, read_grammar
from server.engine.params import ParameterError, SamplingParams
from server.engine.sampling.order import PENALTIES, SAMPLERS
from server.engine.types import BeamSearch
from server.errors import BadRequest

DEFAULT_WIDTH = 4

# Parameters that only sampling looks at. Their fields have the same names.
_SAMPLING_ONLY = (
    *(parameter for name, stage in SAMPLERS.items() if name not in PENALTIES for parameter in stage.parameters),
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
)


_FIELDS = frozenset(BeamFields.model_fields)

# What says which stages there are and in which order: of those that are left in a search, all, in their usual one.
_ORDERING = ("samplers", "strategy")


def read_beams(asked: GenerationRequest, n: int) -> BeamSearch | None:
    """The rules for the best of `n` hypotheses, or None for a request that samples.

    Raises BadRequest for rules that contradict each other or have no search to apply to, for what only sampling looks
    at, and for what does not combine.
    """
    if asked.model_fields_set.isdisjoint(_FIELDS):
        return None
    width = _width(asked, n)
    if width is None:
        _check_no_rules(asked)
        return None
    if n > width:
        raise _invalid("n", n, f"at most the beam width, which is {width}")
    _check_no_sampling(asked)
    _check_alone(asked)
    default = BeamSearch(1)
    try:
        return BeamSearch(
            width,
            length_penalty=_or(asked.length_penalty, default.length_penalty),
            early_stopping=default.early_stopping if asked.early_stopping is None else asked.early_stopping,
            num_groups=default.num_groups if asked.num_beam_groups is None else asked.num_beam_groups,
            diversity_penalty=_or(asked.diversity_penalty, default.diversity_penalty),
        )
    except ParameterError as error:
        raise BadRequest(f"{error}.", error.parameter, "invalid_value") from None


def searching(resolved: Resolved, rules: BeamSearch, asked: GenerationRequest) -> Resolved:
    """Parameters as a search uses them: what checkpoint or server recommend for sampling has no part in it.

    Raises BadRequest when there is nothing to search for.
    """
    if resolved.max_tokens == 0:
        raise _invalid("max_tokens", 0, "at least 1 for beam search")
    default = SamplingParams()
    neutral = {name: getattr(default, name) for name in _SAMPLING_ONLY}
    fields = {
        "beam_width": rules.width,
        "length_penalty": rules.length_penalty,
        "early_stopping": rules.early_stopping,
        "num_beam_groups": rules.num_groups,
        "diversity_penalty": rules.diversity_penalty,
    }
    left_out = {*_SAMPLING_ONLY, *_ORDERING}

    def tell() -> Mapping[str, InForce]:
        in_force = {name: value for name, value in resolved.in_force.items() if name not in left_out} | {
            name: InForce(value, "server" if getattr(asked, name) is None else "request")
            for name, value in fields.items()
        }
        if asked.num_beams is not None:
            in_force["beam_width"] = InForce(rules.width, "request")
        return in_force

    return replace(resolved, params=replace(resolved.params, **neutral), tell=tell)


def _width(asked: GenerationRequest, n: int) -> int | None:
    first, second = asked.beam_width, asked.num_beams
    if first is not None and second is not None and first != second:
        raise _invalid("num_beams", second, f"the same as beam_width, its other name here, which is {first}")
    width = second if first is None else first
    if width is not None and asked.use_beam_search is False:
        name = "num_beams" if first is None else "beam_width"
        raise BadRequest(f"{name} is {width} but use_beam_search is false.", name, "invalid_value")
    return max(n, DEFAULT_WIDTH) if width is None and asked.use_beam_search else width


def _check_no_rules(asked: GenerationRequest) -> None:
    for name in ("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty"):
        value = getattr(asked, name)
        if value is not None:
            message = f"{name} is {shown(value)} but there is no beam search; set beam_width."
            raise BadRequest(message, name, "invalid_value")


def _check_no_sampling(asked: GenerationRequest) -> None:
    """A value that asks for nothing is fine; clients that know of no search send temperature 0."""
    default = SamplingParams()
    for name in _SAMPLING_ONLY:
        value = getattr(asked, name)
        neutral = {getattr(default, name), *((0,) if name == "temperature" else (-1,) if name == "top_k" else ())}
        if value is not None and value not in neutral:
            message = f"{name} is {shown(value)} but beam search does not sample; leave it out."
            raise BadRequest(message, name, "invalid_value")


def _check_alone(asked: GenerationRequest) -> None:
    if read_grammar(asked) is not None:
        raise grammar_refused(asked, "does not combine with beam search")
    method = None if asked.speculative is None else asked.speculative.method
    if method not in (None, "auto", "off"):
        message = f'speculative.method is {shown(method)}; beam search drafts nothing, so it must be "auto" or "off".'
        raise BadRequest(message, "speculative.method", "invalid_value")
    for name in (*_ORDERING, "guidance_scale", "negative_prompt"):
        value = getattr(asked, name)
        if value is not None:
            message = f"{name} is {shown(value)}, which beam search does not combine with; leave it out."
            raise BadRequest(message, name, "invalid_value")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _invalid(name: str, value: object, expected: str) -> BadRequest:
    return BadRequest(f"{name} is {shown(value)}; it must be {expected}.", name, "invalid_value")
