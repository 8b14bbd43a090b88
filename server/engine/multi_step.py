"""Several plain steps in one, where each is so short that what a step costs beside the model would be as much again.

The model's passes follow each other in one call: each chooses a token for every sequence, and the next computes it. To
everybody else it is one step that gives each sequence several tokens.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from model.native.native_model import Draws, Limit
from model.paged import BLOCK_SIZE, Span
from server.engine.decoding import Decoding
from server.engine.plain_steps import latest_tokens, plain_row
from server.engine.runner import StepResult
from server.engine.sampling.constraints import is_constrained
from server.engine.sampling.row import Row
from server.engine.scheduler import Chunk, Scheduler

# Passes follow each other for so long, in which nobody is told anything: less than anyone notices.
SECONDS_IN_A_ROW = 0.005
# So many tokens need at most one block more for each sequence.
MOST_PASSES = BLOCK_SIZE
_LEAST_SECONDS = 1e-9  # a clock may not have moved


class Passes(NamedTuple):
    """What the passes of one step came to."""

    tokens: Sequence[tuple[int, ...]]  # new ones of each sequence, all as many; empty where none has been chosen
    num_passes: int
    result: StepResult  # of the last pass, but for the seconds, which are of all
    choose_seconds: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the last pass has not chosen its tokens."""
        return not self.tokens or len(self.tokens[0]) < self.num_passes

    def lengthen(self, chunks: Sequence[Chunk]) -> tuple[Chunk, ...]:
        """The chunks of the first pass with all that was computed."""
        if self.num_passes == 1:
            return tuple(chunks)
        return tuple([chunk._replace(length=self.num_passes) for chunk in chunks])


class Decode(Protocol):
    """A runner that chooses tokens itself."""

    def __call__(self, tokens: Sequence[int], spans: Sequence[Span], draws: Draws, limit: Limit) -> Passes:
        """Passes from every sequence's latest token on; see `NativeModel.decode`."""
        ...


class MultiStep:
    """Says how many passes a core's next step should have, by what the last ones took, and makes them."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._watched = -1
        self._seconds_per_pass = SECONDS_IN_A_ROW  # nothing is measured yet

    def run(self, decodings: Sequence[Decoding], chunks: Sequence[Chunk], scheduler: Scheduler) -> Passes | None:
        """The passes of a step of plain sequences, whose chunks these are; None where one is all there can be."""
        num_passes = self.num_passes(decodings)
        if num_passes < 2:
            return None
        draws = draws_of([plain_row(one) for one in decodings], [one.endings for one in decodings])
        if draws is None:
            return None
        if not scheduler.reserve_ahead(chunks, num_passes - 1):
            return None
        passes = self._decode(*latest_tokens(decodings), draws, Limit(num_passes, SECONDS_IN_A_ROW, self._watched))
        self.note(passes)
        return passes

    def watch(self, descriptor: int) -> None:
        """From now on no pass follows once the descriptor has something to read: whoever asks waits for one at most."""
        self._watched = descriptor

    def num_passes(self, decodings: Sequence[Decoding]) -> int:
        """As many as there is time for, and as all the sequences have tokens already and may still get.

        So first tokens are told one by one: passes keep all processors, which those who tell need, too.
        """
        if 2 * self._seconds_per_pass > SECONDS_IN_A_ROW:
            return 1
        affordable = min(MOST_PASSES, int(SECONDS_IN_A_ROW / self._seconds_per_pass))
        sequences = [one.sequence for one in decodings]
        return min(affordable, *(min(one.num_outputs, one.num_remaining) for one in sequences))

    def note(self, passes: Passes) -> None:
        """What plain passes have just taken."""
        self._seconds_per_pass = max(passes.result.forward_seconds / passes.num_passes, _LEAST_SECONDS)


def draws_of(rows: Sequence[Row], endings: Sequence[Collection[int]]) -> Draws | None:
    """How the rows' tokens and those behind them are chosen; None where that takes more than logits and parameters.

    `endings` are the tokens that end each row's sequence.
    """
    programs: list[bytes] = []
    for row in rows:
        program = row.params.program
        if row.state is not None or program is None or is_constrained(row):
            return None
        programs.append(program)
    return Draws(programs, endings)
