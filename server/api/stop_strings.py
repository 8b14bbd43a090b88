"""Where a growing text first completes a stop string. It knows characters only: no token, no request.

The rule is a function of the text alone, whatever pieces it arrives in: the stop string that is completed first ends
the text, and of several completed by the same character the longest.
"""

from collections.abc import Sequence


class StopStrings:
    """A request's stop strings with their failure tables (Knuth, Morris, Pratt 1977); shared by all its choices."""

    def __init__(self, strings: Sequence[str]) -> None:
        # Longest first: the first automaton to complete on a character is then the longest to do so.
        self.strings = tuple(sorted(set(strings), key=lambda string: (-len(string), string)))
        self.failures = tuple(_failure_table(string) for string in self.strings)

    def __bool__(self) -> bool:
        return bool(self.strings)


class StopScanner:
    """One choice's text on its way out. Text that might be the beginning of a stop string is held until decided."""

    def __init__(self, stops: StopStrings, include: bool) -> None:
        self._stops = stops
        self._include = include
        self._matched = [0] * len(stops.strings)  # per stop string, how many of its characters the text ends with
        self._held = ""
        self.num_released = 0
        self.stopped_by: str | None = None

    def push(self, text: str, armed: bool) -> str:
        """The text that `text` releases. Sets `stopped_by` when a stop string completes in it and `armed` is true."""
        if not self._stops:
            return self._release(text)
        buffer = self._held + text
        for position in range(len(self._held), len(buffer)):
            completed = self._advance(buffer[position])
            if completed is not None and armed:
                self.stopped_by = completed
                self._held = ""
                return self._release(buffer[: position + 1 - (0 if self._include else len(completed))])
        keep = len(buffer) - max(self._matched)
        self._held = buffer[keep:]
        return self._release(buffer[:keep])

    def finish(self) -> str:
        """The text has ended: what was held is text after all."""
        held, self._held = self._held, ""
        return self._release(held)

    def _advance(self, character: str) -> str | None:
        """Feed every automaton one character; the longest stop string it completes."""
        completed = None
        for index, string in enumerate(self._stops.strings):
            failure = self._stops.failures[index]
            state = self._matched[index]
            while state and string[state] != character:
                state = failure[state - 1]
            if string[state] == character:
                state += 1
            if state == len(string):
                completed = completed or string
                state = failure[state - 1]
            self._matched[index] = state
        return completed

    def _release(self, text: str) -> str:
        self.num_released += len(text)
        return text


def _failure_table(string: str) -> tuple[int, ...]:
    """Per position, the length of the longest proper prefix of `string` that ends there."""
    table = [0] * len(string)
    state = 0
    for position in range(1, len(string)):
        while state and string[state] != string[position]:
            state = table[state - 1]
        if string[state] == string[position]:
            state += 1
        table[position] = state
    return tuple(table)
