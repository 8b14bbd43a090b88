"""The run's log: one JSON object per line, cut back to a step when a run resumes. Knows no tensors."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from model.files import replace_bytes
from training.config import TrainingError

LOG_FILE = "log.jsonl"
Record = Mapping[str, object]


class RunLog:
    """Appends records; each has a `kind` ("step" or "evaluation") and a `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: Record) -> None:
        """Append one line and hand it to the system, so that a crash loses none that came before."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate(self, step: int) -> None:
        """Drop what was logged after `step`, and a line cut short by a crash."""
        if self.path.exists():
            kept = [json.dumps(record) + "\n" for record in _complete(self.path) if _step(record) <= step]
            replace_bytes(self.path, "".join(kept).encode())


def read_log(path: Path) -> list[Record]:
    """All records. Raises TrainingError when there is no log."""
    if not path.is_file():
        raise TrainingError(f"{path} does not exist; is {path.parent} the folder of a run?")
    return list(_complete(path))


def number(record: Record, name: str) -> float:
    """The number in field `name`."""
    value = record[name]
    assert isinstance(value, int | float), f"{name} is {value!r}, not a number"
    return float(value)


def _step(record: Record) -> int:
    return int(number(record, "step"))


def _complete(path: Path) -> Iterator[Record]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for place, line in enumerate(lines):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if place == len(lines) - 1:
                return
            raise TrainingError(f"{path}, line {place + 1}: is not JSON") from error
        yield record
