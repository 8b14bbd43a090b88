"""Traces: every decision of the decoder, for those sequences that ask to see them. Knows no scheduler and no text.

A traced sequence chooses by itself, with an observer; the others of its batch go the ordinary way. A row's choice does
not depend on who shares the batch, so tracing changes no token.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from model.paged import Span
from server.engine.decoding import Verification
from server.engine.filters import HIDDEN
from server.engine.sampler import describe
from server.engine.sampling.likeliest import likeliest
from server.engine.scheduler import Chunk
from server.engine.tracing_inside import View, Watch
from server.engine.tracing_types import Contender, DraftFate, DraftTrace, StageTrace, TokenTrace, TraceOptions
from server.engine.types import SequenceRequest
from server.engine.verify import verify

Sight = tuple[str, Tensor, Tensor]
"""A stage, and a row's logits [vocab] before and after it."""


class Tracing:
    """The traced sequences of a core. False while there are none, so that one look per step is all it costs."""

    def __init__(self) -> None:
        self._options: dict[int, TraceOptions] = {}
        self._views: dict[int, list[View]] = {}

    def __bool__(self) -> bool:
        return bool(self._options)

    def start(self, request: SequenceRequest) -> None:
        """Trace the sequence if it asks for that."""
        if request.trace is not None:
            self._options[request.id] = request.trace

    def end(self, id_: int) -> None:
        """The sequence has ended."""
        self._options.pop(id_, None)
        self._views.pop(id_, None)

    def watch(self, running: Iterable[tuple[Chunk, Span]]) -> Watch | None:
        """What looks into the model during a step of these chunks, each with the span of its tokens and drafts.

        None when nobody wants to see anything there.
        """
        views: list[View] = []
        first_row = 0
        for chunk, span in running:
            id_ = chunk.sequence.request.id
            options = self._options.get(id_)
            if options is not None and chunk.is_last and (options.experts or options.attention):
                self._views[id_] = [
                    View(first_row + index, span.start + index, span.blocks, options)
                    for index in range(chunk.length - 1, span.length)
                ]
                views += self._views[id_]
            first_row += span.length
        return Watch(views) if views else None

    def verify(self, logits: Tensor, scores: Tensor, verifications: Iterable[Verification]) -> list[Verification]:
        """Give the traced sequences their tokens and traces; returns the other verifications.

        Tokens are chosen by `scores` and the model's own distributions are `logits`, both [rows, vocab].
        """
        others = []
        for one in verifications:
            id_ = one.decoding.sequence.request.id
            if id_ not in self._options:
                others.append(one)
                continue
            recorder = Recorder()
            verify(scores, [one], observe=recorder)
            views = self._views.pop(id_, [])
            one.traces = tuple(_traces(logits, scores, one, recorder.rows, views))
        return others


class Recorder:
    """An `Observe` for the choices of one sequence: keeps what every row went through, in the order of the rows."""

    def __init__(self) -> None:
        self.rows: list[list[Sight]] = []
        self._round: dict[int, list[Sight]] = {}

    def __call__(self, stage: str, indices: Sequence[int], before: Tensor, after: Tensor) -> None:
        for index, old, new in zip(indices, before, after, strict=True):
            self._round.setdefault(index, []).append((stage, old, new))
        if stage == "draw":  # the last of a round, and of all its rows
            self.rows += [self._round[index] for index in indices]
            self._round = {}


def _traces(
    logits: Tensor, scores: Tensor, one: Verification, seen: Sequence[list[Sight]], views: Sequence[View]
) -> Iterable[TokenTrace]:
    """One trace for each token that was kept; `seen` may hold rows beyond, behind drafts that proved wrong."""
    request = one.decoding.sequence.request
    assert request.trace is not None
    for place, token in enumerate(one.tokens):
        row = one.first_row + place
        *stages, (_, final, perturbed) = seen[place]
        if request.guidance is not None:
            stages.insert(0, ("guidance", logits[row], scores[row]))
        (own,) = describe(logits[row : row + 1], [token], [request.trace.top])
        winner, runner_up = (None, None) if request.params.is_greedy else _draw(token, final, perturbed)
        view = views[place] if views else None
        yield TokenTrace(
            entropy=own.entropy,
            top_tokens=own.top_tokens,
            top_logprobs=own.top_logprobs,
            logprob=own.logprob,
            rank=own.rank,
            stages=tuple(stage_trace(name, old, new, request.trace.top) for name, old, new in stages),
            final_probability=float(final.double().softmax(-1)[token]),
            final_rank=int((final > final[token]).sum()) + 1,
            winner=winner,
            runner_up=runner_up,
            drafts=_drafts(one, place),
            experts=() if view is None else tuple(view.experts),
            attention=() if view is None else tuple(view.attention),
        )


def stage_trace(name: str, before: Tensor, after: Tensor, top: int) -> StageTrace:
    """What a stage did to a row [vocab] of logits."""
    had, has = before > HIDDEN, after > HIDDEN
    # A running sum adds one after the other; `sum` may divide a row among threads, and then rounds otherwise.
    removed = before.double().softmax(-1).masked_fill(~had | has, 0.0).cumsum(-1)[-1]
    tokens, _ = likeliest(after, top)
    probabilities = after.double().softmax(-1)[tokens].tolist()
    return StageTrace(name, int(had.sum()), int(has.sum()), float(removed), tuple(tokens), tuple(probabilities))


def _draw(token: int, logits: Tensor, perturbed: Tensor) -> tuple[Contender, Contender | None]:
    """The winner and who came next; `perturbed` hides those that could not win whatever their noise."""
    others = perturbed.clone()
    others[token] = HIDDEN
    second = int(others.argmax())
    runner_up = _contender(second, logits, perturbed) if others[second] > HIDDEN else None
    return _contender(token, logits, perturbed), runner_up


def _contender(token: int, logits: Tensor, perturbed: Tensor) -> Contender:
    logit, score = float(logits[token]), float(perturbed[token])
    return Contender(token, logit, score - logit, score)


def _drafts(one: Verification, place: int) -> tuple[DraftTrace, ...]:
    """The draft for the token at `place` of the step's new ones; at the last also those that were not looked at."""
    if place >= len(one.drafts):
        return ()
    is_right = one.drafts[place] == one.tokens[place]
    own = DraftTrace(one.drafts[place], "accepted" if is_right else "rejected")
    if place < len(one.tokens) - 1:
        return (own,)
    fate: DraftFate = "behind the end" if is_right else "behind a rejected one"
    return (own, *(DraftTrace(token, fate) for token in one.drafts[place + 1 :]))
