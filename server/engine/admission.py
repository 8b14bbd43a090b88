"""Whether a request can be served at all by a model, decided before anything is allocated for it. No torch."""

from collections.abc import Sequence

from server.engine.params import ParameterError
from server.engine.types import EngineInfo, SequenceRequest


def ending_tokens(info: EngineInfo, request: SequenceRequest) -> tuple[int, ...]:
    """The tokens that end the sequence when chosen."""
    ends = () if request.params.ignore_eos else info.eos_token_ids
    return (*ends, *request.params.stop_token_ids)


def check_request(info: EngineInfo, request: SequenceRequest) -> None:
    """Raises ParameterError naming what is wrong: no prompt, ids outside the vocabulary, more tokens than the context
    holds, or no token left to choose from."""
    _check_prompt(info, "prompt", request.prompt, request.params.max_tokens)
    if request.guidance is not None:
        # The output follows the negative prompt, too.
        negative_prompt = request.guidance.negative_prompt + request.forked
        _check_prompt(info, "negative_prompt", negative_prompt, request.params.max_tokens)
    if request.beams is not None:
        _check_alone(request)
    request.params.check_vocabulary(info.vocab_size, ending_tokens(info, request))


def _check_alone(request: SequenceRequest) -> None:
    """Beam search searches by the model's own log-probabilities, for at least one token."""
    for name, value in (("grammar", request.grammar), ("guidance_scale", request.guidance)):
        if value is not None:
            raise ParameterError(name, "is set together with beam search; they do not combine")
    if request.params.max_tokens < 1:
        raise ParameterError("max_tokens", f"is {request.params.max_tokens}; beam search needs at least 1")


def _check_prompt(info: EngineInfo, name: str, prompt: Sequence[int], max_tokens: int) -> None:
    if not prompt:
        raise ParameterError(name, "is empty; it must hold at least 1 token")
    for token in prompt:
        if not 0 <= token < info.vocab_size:
            raise ParameterError(name, f"holds token id {token}; the vocabulary ends at {info.vocab_size - 1}")
    room = info.context_length - len(prompt)
    if max_tokens > room:
        raise ParameterError(
            "max_tokens",
            f"is {max_tokens}; with {len(prompt)} {name} tokens the context of "
            f"{info.context_length} tokens leaves {max(room, 0)}",
        )
