"""Classifier-free guidance: a sequence and its companion, which has the negative prompt, choose each token together.

The two are scheduled like any others and need not run in the same step: who has its logits first holds them until the
other has its own, so chunked prompts, preemptions and prefix hits change nothing. Where they do run together, both run
the same drafts. Knows no sampling stage.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from server.engine.decoding import Decoding
from server.engine.params import SamplingParams
from server.engine.sequence import Sequence as EngineSequence
from server.engine.types import Guidance, Speculation


@dataclass
class GuidedPair:
    """A guided sequence, its companion, and the rows of logits [vocab] of those that wait for the other's."""

    decoding: Decoding
    companion: EngineSequence
    scale: float
    held: dict[int, list[Tensor]] = field(default_factory=dict)  # by sequence id

    @property
    def leader(self) -> EngineSequence:
        return self.decoding.sequence

    def hold(self, sequence: EngineSequence, logits: Tensor) -> bool:
        """Keep one's logits [1 + drafts, vocab] behind its latest token and its drafts; whether the other's are there.

        Row by row: a view would keep the whole step's logits alive, and how a GPU reduces a row depends on where in
        memory it begins.
        """
        self.held[sequence.request.id] = [row.clone() for row in logits]
        sequence.is_held = True
        return len(self.held) == 2

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """The model's own logits [vocab] behind the leader's latest token and each draft, and the guided ones.

        Both are used up.
        """
        own, companions = (self.held[one.request.id] for one in (self.leader, self.companion))
        self.release()
        return [(mine, guide(mine, others, self.scale)) for mine, others in zip(own, companions, strict=True)]

    def release(self) -> None:
        """Neither waits for the other any more."""
        self.held.clear()
        self.leader.is_held = self.companion.is_held = False

    def follow(self) -> None:
        """Give the companion the tokens that the leader has got."""
        self.companion.tokens += self.leader.tokens[self.leader.num_prompt + self.companion.num_outputs :]


class GuidedPairs:
    """Every guided sequence of a core. `internal_ids` are ids for sequences that no client knows."""

    def __init__(self, internal_ids: Iterator[int]) -> None:
        self._internal_ids = internal_ids
        self._pair_of: dict[int, GuidedPair] = {}  # by the id of either sequence

    def start(self, decoding: Decoding, guidance: Guidance) -> None:
        """Give a sequence its companion."""
        sequence = decoding.sequence
        request = sequence.request
        companion = EngineSequence(
            replace(
                request,
                id=next(self._internal_ids),
                prompt=guidance.negative_prompt + request.forked,
                params=SamplingParams(max_tokens=request.params.max_tokens),
                speculation=Speculation(),
                grammar=None,
                guidance=None,
            )
        )
        companion.may_draft = False  # it runs the leader's
        pair = GuidedPair(decoding, companion, guidance.scale)
        self._pair_of[request.id] = self._pair_of[companion.request.id] = pair

    def of(self, sequence: EngineSequence) -> GuidedPair | None:
        """The pair a sequence is one of."""
        return self._pair_of.get(sequence.request.id)

    def members(self, sequence: EngineSequence) -> tuple[EngineSequence, ...]:
        """A guided sequence and its companion, for either of them; any other sequence by itself."""
        pair = self.of(sequence)
        return (sequence,) if pair is None else (pair.leader, pair.companion)

    def drafter(self, sequence: EngineSequence) -> EngineSequence:
        """Whose drafts a sequence runs: the leader's, if it is one of a pair."""
        return self.members(sequence)[0]

    def end(self, sequence: EngineSequence) -> tuple[EngineSequence, ...]:
        """Forget the pair; returns its members."""
        members = self.members(sequence)
        for member in members:
            self._pair_of.pop(member.request.id, None)
        return members


def guide(logits: Tensor, companions: Tensor, scale: float) -> Tensor:
    """Log-probabilities moved by `scale` from the companion's towards the sequence's own and beyond; all [vocab].

    log P' = log P(x | negative) + scale (log P(x | prompt) - log P(x | negative)): Sanchez et al. 2023, "Stay on topic
    with Classifier-Free Guidance". Not normalised.
    """
    own, negative = logits.log_softmax(-1), companions.log_softmax(-1)
    return scale * (own - negative) + negative


def with_guided(logits: Tensor, pairs: Sequence[GuidedPair]) -> tuple[Tensor, Tensor]:
    """A step's logits [rows, vocab] with the pairs' rows appended: first the model's own, then those to choose by.

    Takes what the pairs hold. Without pairs both are `logits` itself.
    """
    if not pairs:
        return logits, logits
    own, guided = zip(*(row for pair in pairs for row in pair.take()), strict=True)
    return torch.cat((logits, torch.stack(own))), torch.cat((logits, torch.stack(guided)))
