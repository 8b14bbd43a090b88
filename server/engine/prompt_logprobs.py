"""How likely the model finds the prompt itself, reported piece by piece as its chunks are computed."""

from torch import Tensor

from server.engine.sampler import describe
from server.engine.scheduler import Chunk
from server.engine.types import TokenLogprob

# Rows of logits described at once: those of a long chunk would otherwise be held in several copies.
_ROWS_AT_ONCE = 64


def describe_prompt(chunk: Chunk, logits: Tensor) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of the prompt tokens that follow the chunk's wanted positions; logits [wanted, vocab].

    Notes in the sequence how far they have been reported.
    """
    sequence, count = chunk.sequence, chunk.sequence.request.params.prompt_logprobs
    start = sequence.num_prompt_logprobs
    targets = sequence.tokens[start + 1 : min(chunk.end + 1, sequence.num_prompt)]
    if count is None or not targets:
        return ()
    described: list[TokenLogprob] = []
    for first in range(0, len(targets), _ROWS_AT_ONCE):
        part = targets[first : first + _ROWS_AT_ONCE]
        described += describe(logits[first : first + len(part)], part, [count] * len(part))
    sequence.num_prompt_logprobs += len(described)
    return tuple(described)
