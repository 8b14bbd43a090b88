"""Whether a request can be served at all by a model, decided before anything is allocated for it. No torch."""

from server.engine.params import ParameterError
from server.engine.types import EngineInfo, SequenceRequest


def ending_tokens(info: EngineInfo, request: SequenceRequest) -> tuple[int, ...]:
    """The tokens that end the sequence when chosen."""
    ends = () if request.params.ignore_eos else info.eos_token_ids
    return (*ends, *request.params.stop_token_ids)


def check_request(info: EngineInfo, request: SequenceRequest) -> None:
    """Raises ParameterError naming what is wrong: no prompt, ids outside the vocabulary, more tokens than the context
    holds, or no token left to choose from."""
    params = request.params
    if not request.prompt:
        raise ParameterError("prompt", "is empty; it must hold at least 1 token")
    for token in request.prompt:
        if not 0 <= token < info.vocab_size:
            raise ParameterError("prompt", f"holds token id {token}; the vocabulary ends at {info.vocab_size - 1}")
    room = info.context_length - len(request.prompt)
    if params.max_tokens > room:
        raise ParameterError(
            "max_tokens",
            f"is {params.max_tokens}; with {len(request.prompt)} prompt tokens the context of "
            f"{info.context_length} tokens leaves {max(room, 0)}",
        )
    params.check_vocabulary(info.vocab_size, ending_tokens(info, request))
