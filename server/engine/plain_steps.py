"""Steps in which every sequence gets its next token and nothing else happens, as most steps are.

The same as the core's own way, in fewer looks at each sequence: what a step costs beside the model is mostly waiting
for memory, as the model has swept the processor's caches.
"""

from collections.abc import Mapping, Sequence

from model.paged import Span
from server.engine.decoding import Decoding
from server.engine.runner import Runner, StepResult
from server.engine.sampling.row import Row
from server.engine.scheduler import Chunk
from server.engine.types import FinishReason, SequenceOutput
from server.engine.verify import Choose


def plain_decodings(chunks: Sequence[Chunk], decodings: Mapping[int, Decoding]) -> list[Decoding] | None:
    """The chunks' decodings, by their ids, if all are plain and each chunk is its sequence's latest token alone."""
    found = []
    for sequence, start, length, num_drafts in chunks:
        decoding = decodings.get(sequence.request.id)
        if decoding is None or not decoding.is_plain or sequence.scheduled_at is None:
            return None
        if length != 1 or num_drafts or start + 1 != len(sequence.tokens):
            return None
        found.append(decoding)
    return found


def run_plain(runner: Runner, decodings: Sequence[Decoding]) -> StepResult:
    """Compute every sequence's latest token, with its logits."""
    tokens, spans = latest_tokens(decodings)
    return runner.run(tokens, spans, range(len(tokens)))


def latest_tokens(decodings: Sequence[Decoding]) -> tuple[list[int], list[Span]]:
    """Every sequence's latest token, and where it stands."""
    tokens: list[int] = []
    spans: list[Span] = []
    for decoding in decodings:
        sequence = decoding.sequence
        tokens.append(sequence.tokens[-1])
        spans.append(Span(len(sequence.tokens) - 1, 1, sequence.blocks))
    return tokens, spans


def choose_plain(
    choose: Choose, result: StepResult, decodings: Sequence[Decoding]
) -> list[tuple[SequenceOutput, FinishReason | None]]:
    """Give every sequence its next token; what to tell of it, and why it ends if it does. The result must be finite."""
    rows = [plain_row(one) for one in decodings]
    chosen = choose(result.logits, range(len(rows)), rows)
    return [keep_tokens(one, (token,)) for one, token in zip(decodings, chosen, strict=True)]


def plain_row(decoding: Decoding) -> Row:
    """What chooses a plain sequence's next token."""
    params = decoding.sequence.request.params
    if params.min_tokens:
        return decoding.row(0)
    return Row(params, len(decoding.sequence.tokens), (), decoding.state)


def keep_tokens(decoding: Decoding, tokens: tuple[int, ...]) -> tuple[SequenceOutput, FinishReason | None]:
    """Give a sequence its new tokens, of which the last may end it; what to tell of it, and why it ends if it does."""
    sequence = decoding.sequence
    sequence.tokens += tokens
    is_ending = tokens[-1] in decoding.endings
    output = SequenceOutput(  # mostly by position, as names cost as much again
        sequence.request.id,
        tokens,
        (),
        (),
        None,
        tokens[-1] if is_ending else None,
        sequence.num_cached_tokens or 0,
        sequence.scheduled_at or 0.0,
    )
    if is_ending:
        return output, "stop"
    return output, None if sequence.num_remaining else "length"
