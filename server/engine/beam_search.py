"""Beam search over ordinary sequences: every beam is one, scheduled like any other.

The beams of a search hold their logits until all of them have theirs, so neither chunks nor preemptions change the
result. A beam with several continuations goes on as the first of them; the others are new sequences that share its
full blocks. Knows no chunk and no cache.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor

from server.engine.beam_group import BeamGroup, Candidate, Ended
from server.engine.beam_scores import beam_scores, candidates_of
from server.engine.decoding import Decoding
from server.engine.sampler import describe
from server.engine.sequence import Sequence as EngineSequence
from server.engine.types import BeamSearch, FinishReason, SequenceOutput, TokenLogprob

Logprobs = tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Beam:
    """A text so far. In the beginning the groups' beams are one and the same sequence."""

    decoding: Decoding
    total: float = 0.0  # sum of its tokens' log-probabilities, as the search counts them
    logprobs: Logprobs = ()  # by the model itself, where asked for


@dataclass(frozen=True)
class Hypothesis:
    """A finished text."""

    tokens: tuple[int, ...]
    logprobs: Logprobs
    score: float
    finish_reason: FinishReason
    stop_token: int | None


@dataclass
class Lane:
    """One group of beams at work."""

    rules: BeamGroup
    beams: list[Beam]  # best first
    hypotheses: list[Hypothesis] = field(default_factory=list)  # best first, as many as `rules.scores`


@dataclass
class Changes:
    """What a step of a search does to the schedule."""

    added: list[EngineSequence] = field(default_factory=list)
    removed: list[EngineSequence] = field(default_factory=list)


class Search:
    """One beam search. `followers` maps the ids of those who asked for it to the ranks they get."""

    def __init__(self, root: Decoding, rules: BeamSearch, ids: Iterator[int]) -> None:
        self.root = root.sequence
        self.followers: dict[int, int] = {}
        self.members: dict[int, Decoding] = {root.sequence.request.id: root}
        self._rules = rules
        self._ids = ids
        params = root.sequence.request.params
        self._num_logprobs = params.logprobs
        # The root reports the prompt's log-probabilities, once.
        self._fork_request = replace(root.sequence.request, params=replace(params, prompt_logprobs=None))
        self._lanes = [
            Lane(BeamGroup(rules, params.max_tokens, root.endings), [Beam(root)]) for _ in range(rules.num_groups)
        ]
        self._endings = torch.tensor(sorted(root.endings), dtype=torch.long)
        self._held: dict[int, Tensor] = {}
        self._length = 0
        self._num_settled = 0

    @property
    def is_done(self) -> bool:
        return all(lane.rules.is_done for lane in self._lanes)

    @property
    def sequences(self) -> tuple[EngineSequence, ...]:
        """Its beams' sequences."""
        return tuple(one.sequence for one in self.members.values())

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """All groups' finished ones, the best first."""
        every = chain.from_iterable(lane.hypotheses for lane in self._lanes)
        return sorted(every, key=lambda hypothesis: -hypothesis.score)

    def hold(self, sequence: EngineSequence, logits: Tensor) -> bool:
        """Keep a beam's logits [vocab] behind its latest token; whether every beam's are there."""
        self._held[sequence.request.id] = logits.clone()  # a view would keep the whole step's logits alive
        sequence.is_held = True
        return len(self._held) == len(self.members)

    def advance(self) -> Changes:
        """Give every beam its next token. To be called when all of them hold their logits."""
        members = list(self.members.values())
        logits = torch.stack([self._held[one.sequence.request.id] for one in members])
        self._held.clear()
        self._length += 1
        scores = beam_scores(logits, [one.row(0) for one in members])
        # A tokenizer may know an end of text that the model has no logits for.
        endings = self._endings[self._endings < scores.shape[-1]].to(scores.device)
        # Of a beam: as many as its group has beams, and as many as the groups before it have and may push back.
        top_of = {
            one.sequence.request.id: candidates_of(row, endings, self._rules.width)
            for one, row in zip(members, scores, strict=True)
        }
        chosen: Counter[int] = Counter()  # tokens, by the groups that came before
        picks: list[tuple[Lane, list[Candidate], list[Ended]]] = []
        for lane in self._lanes:
            if lane.rules.is_done:
                continue
            candidates = self._candidates(lane, top_of, chosen)
            going_on, ended = lane.rules.split(candidates, self._length)
            chosen.update(candidate.token for candidate in going_on)
            picks.append((lane, going_on, ended))
        described = self._describe(logits, members, picks)
        for lane, going_on, ended in picks:
            self._finish(lane, ended, described)
            lane.rules.settle(going_on, self._length)
        return self._continue([(lane, going_on) for lane, going_on, _ in picks], described)

    def _candidates(
        self, lane: Lane, top_of: dict[int, list[tuple[int, float]]], chosen: Counter[int]
    ) -> list[Candidate]:
        """Continuations of a lane's beams, best first, ties by beam and token. Diversity as Vijayakumar et al. 2018."""
        penalty = self._rules.diversity_penalty
        candidates = [
            Candidate(beam.total + (logprob - penalty * chosen[token]), index, token)
            for index, beam in enumerate(lane.beams)
            for token, logprob in top_of[beam.decoding.sequence.request.id]
        ]
        return sorted(candidates, key=lambda candidate: (-candidate.total, candidate.beam, candidate.token))

    def _describe(
        self,
        logits: Tensor,
        members: Sequence[Decoding],
        picks: Sequence[tuple[Lane, list[Candidate], list[Ended]]],
    ) -> dict[tuple[int, int], TokenLogprob]:
        """Log-probabilities by the model itself, by (sequence, token) of every pick."""
        if self._num_logprobs is None:
            return {}
        wanted = dict.fromkeys(
            (lane.beams[candidate.beam].decoding.sequence.request.id, candidate.token)
            for lane, going_on, ended in picks
            for candidate in (*going_on, *(one.candidate for one in ended))
        )
        index_of = {one.sequence.request.id: index for index, one in enumerate(members)}
        rows = logits[[index_of[id_] for id_, _ in wanted]]
        entries = describe(rows, [token for _, token in wanted], [self._num_logprobs] * len(wanted))
        return dict(zip(wanted, entries, strict=True))

    def _finish(self, lane: Lane, ended: Sequence[Ended], described: dict[tuple[int, int], TokenLogprob]) -> None:
        for one in ended:
            rank = lane.rules.keep(one.score)
            if rank is None:
                continue
            beam, token = lane.beams[one.candidate.beam], one.candidate.token
            hypothesis = Hypothesis(
                (*_output_of(beam), token),
                _logprobs(beam, token, described),
                one.score,
                "length" if one.is_last else "stop",
                None if one.is_last else token,
            )
            lane.hypotheses.insert(rank, hypothesis)
            del lane.hypotheses[lane.rules.size :]

    def _continue(
        self,
        picks: Sequence[tuple[Lane, list[Candidate]]],
        described: dict[tuple[int, int], TokenLogprob],
    ) -> Changes:
        """Append the chosen tokens, to the beams themselves where they go on once, and to forks where more often."""
        changes = Changes()
        before, self.members = self.members, {}
        grown: list[tuple[Decoding, int]] = []
        for lane, going_on in picks:
            beams = []
            for candidate in () if lane.rules.is_done else going_on:
                beam = lane.beams[candidate.beam]
                decoding = beam.decoding
                if decoding.sequence.request.id in self.members:
                    decoding = decoding.branch(replace(self._fork_request, id=next(self._ids)))
                    changes.added.append(decoding.sequence)
                self.members[decoding.sequence.request.id] = decoding
                grown.append((decoding, candidate.token))
                beams.append(Beam(decoding, candidate.total, _logprobs(beam, candidate.token, described)))
            lane.beams = beams
        for decoding, token in grown:  # only now, when everything is forked
            decoding.append(token)
            decoding.sequence.is_held = False
        changes.removed += [one.sequence for id_, one in before.items() if id_ not in self.members]
        return changes

    def report(self) -> list[SequenceOutput]:
        """What the followers learn of the latest step: the best one its settled tokens, everybody the end."""
        if self.is_done:
            hypotheses = self.hypotheses
            return [self._last_output(id_, rank, hypotheses) for id_, rank in self.followers.items()]
        settled = self._settle()
        outputs = []
        for id_, rank in self.followers.items():
            new = settled if rank == 0 else Settled()
            if new.tokens or self._length == 1:  # the first one says that it has been scheduled
                outputs.append(replace(self.output(id_), tokens=new.tokens, logprobs=new.logprobs))
        return outputs

    def output(self, id_: int) -> SequenceOutput:
        """An empty output for a follower."""
        return SequenceOutput(
            id_, num_cached_tokens=self.root.num_cached_tokens or 0, scheduled_at=self.root.scheduled_at or 0.0
        )

    def _settle(self) -> "Settled":
        """Tokens that the best hypothesis is now sure to have: those common to all that may become it."""
        living = [beam for lane in self._lanes for beam in lane.beams]
        texts = [_output_of(beam) for beam in living] + [one.tokens for one in self.hypotheses[:1]]
        start = end = self._num_settled
        while end < min(map(len, texts)) and len({text[end] for text in texts}) == 1:
            end += 1
        self._num_settled = end
        return Settled(texts[0][start:end], living[0].logprobs[start:end])

    def _last_output(self, id_: int, rank: int, hypotheses: Sequence[Hypothesis]) -> SequenceOutput:
        """Where there are fewer hypotheses than were asked for, the last ones are empty."""
        if rank >= len(hypotheses):
            return replace(self.output(id_), finish_reason="stop")
        best = hypotheses[rank]
        start = self._num_settled if rank == 0 else 0
        return replace(
            self.output(id_),
            tokens=best.tokens[start:],
            logprobs=best.logprobs[start:],
            finish_reason=best.finish_reason,
            stop_token=best.stop_token,
            beam_score=best.score,
        )


@dataclass(frozen=True)
class Settled:
    """Tokens of the best hypothesis that no further step can change."""

    tokens: tuple[int, ...] = ()
    logprobs: Logprobs = ()


def _output_of(beam: Beam) -> tuple[int, ...]:
    sequence = beam.decoding.sequence
    return tuple(sequence.tokens[sequence.num_prompt :])


def _logprobs(beam: Beam, token: int, described: dict[tuple[int, int], TokenLogprob]) -> Logprobs:
    entry = described.get((beam.decoding.sequence.request.id, token))
    return beam.logprobs if entry is None else (*beam.logprobs, entry)
