"""Questions to the engine that are still open, and the futures of those who wait. Knows neither socket nor pool."""

import asyncio
from collections.abc import Callable

from server.engine.inspection import Inspection
from server.errors import EngineUnavailable, QueueFull
from server.protocol import Inspect, Inspected

# An engine answers between two steps, so this long means that it is stuck or that its reports pile up.
ANSWER_SECONDS = 5.0
# Each takes the engine some time between two steps, which whoever waits for tokens pays for.
MAX_OPEN = 4


class OpenInspections:
    """Questions by ticket. All that are open end together when the engine is lost."""

    def __init__(self, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._answer_seconds = answer_seconds
        self._waiting: dict[int, asyncio.Future[Inspection]] = {}
        self._next_ticket = 0

    async def ask(self, question: Inspect, send: Callable[[Inspect], None]) -> Inspection:
        """The answer to a question, whose ticket is set here.

        Raises QueueFull when others have asked and wait, EngineUnavailable when no answer comes.
        """
        if len(self._waiting) >= MAX_OPEN:
            raise QueueFull(1, f"{MAX_OPEN} questions about the engine are waiting for their answers already")
        ticket = self._next_ticket
        self._next_ticket += 1
        answer: asyncio.Future[Inspection] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = answer
        try:
            send(Inspect(ticket, question.model, question.salt_prefix, question.limit))
            return await asyncio.wait_for(answer, self._answer_seconds)
        except TimeoutError:
            message = f"the engine did not answer within {self._answer_seconds:g} seconds"
            raise EngineUnavailable(message) from None
        finally:
            del self._waiting[ticket]

    def answer(self, message: Inspected) -> None:
        """Too late an answer, or one that nobody waits for, is dropped."""
        waiting = self._waiting.get(message.ticket)
        if waiting is not None and not waiting.done():
            waiting.set_result(message.inspection)

    def fail(self, reason: str) -> None:
        """No answer will come to any of them."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(EngineUnavailable(reason))
