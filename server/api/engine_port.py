"""What the HTTP edge asks of whatever runs the models. It knows no process, no transport and no text."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

from server.engine.inspection import Inspection
from server.engine.types import EngineInfo, SequenceOutput, SequenceRequest
from server.origins import Origin


class Generation(Protocol):
    """One client request's sequences (several prompts times n), open until all have ended or it is closed."""

    def __aiter__(self) -> AsyncIterator[Sequence[tuple[int, SequenceOutput]]]:
        """One item per engine step that touched the request; if steps piled up, one item with their outputs in order.

        Each output comes with the index its sequence was opened with; the output's own id is the engine's. Ends after
        every sequence has its finish. Raises EngineFailed if the engine dies meanwhile.
        """
        ...

    def tap(self, index: int, take: Callable[[Sequence[int]], int] | None) -> None:
        """Whenever the reader waits from now on, an output of this sequence that is no more than tokens may go to
        `take` at once. As many of the first as that returns the reader does not get. None: nothing may."""
        ...

    def stop(self, index: int) -> None:
        """A stop string was found: the sequence ends with outcome "stop" and nothing more is delivered for it."""
        ...

    def close(self) -> None:
        """Abort whatever has not finished. Idempotent, and always called."""
        ...


class Engine(Protocol):
    """All models being served."""

    def models(self) -> Mapping[str, EngineInfo]:
        """Served name to what is known of it; the last known while an engine restarts."""
        ...

    def is_ready(self) -> bool: ...

    def check_admission(self, model: str, num_sequences: int) -> None:
        """Raises what `open` would raise now for so many sequences, which counts as a refusal. Holds no place."""
        ...

    def open(self, model: str, sequences: Sequence[SequenceRequest], answer_id: str = "") -> Generation:
        """Admit sequences whose ids are 0..len-1, of the answer so called.

        Raises QueueFull, EngineUnavailable or Draining.
        """
        ...

    async def inspect(self, model: str, salt_prefix: str, limit: int) -> Inspection:
        """Who holds which block, as the owner of such salts may see it. Raises EngineUnavailable or QueueFull."""
        ...

    def find_origin(self, id_: int) -> Origin | None:
        """Which answer a sequence of the engine's belongs to; None for one it made itself, and for those forgotten."""
        ...
