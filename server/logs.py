"""One line per event, as `key=value` text or as JSON, over the standard logging. Knows no event in particular."""

import json
import logging
import sys
import time
from typing import Literal

LogFormat = Literal["text", "json"]


class Event:
    """A named event with fields, to be logged as the message: `logger.info(Event("ready", seconds=1.2))`."""

    def __init__(self, name: str, /, **fields: object) -> None:
        self.name = name
        self.fields = fields

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={_quoted(value)}" for key, value in self.fields.items())])


class TextFormatter(logging.Formatter):
    """`2025-01-31T12:00:00.123Z INFO server.drain draining open_requests=3`"""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_timestamp(record)} {record.levelname} {record.name} {record.getMessage()}"
        return line + _traceback(self, record, "\n")


class JsonFormatter(logging.Formatter):
    """One JSON object per line; an event's fields beside `time`, `level`, `logger` and `event`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {"time": _timestamp(record), "level": record.levelname, "logger": record.name}
        if isinstance(record.msg, Event):
            line |= {"event": record.msg.name, **record.msg.fields}
        else:
            line["message"] = record.getMessage()
        if traceback := _traceback(self, record, ""):
            line["traceback"] = traceback
        return json.dumps(line, default=str)


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Send everything at `level` or above to standard error. Both processes call it once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Their informative lines repeat ours (started, stopped); their warnings do not.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "httptools", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _traceback(formatter: logging.Formatter, record: logging.LogRecord, separator: str) -> str:
    return separator + formatter.formatException(record.exc_info) if record.exc_info else ""


def _quoted(value: object) -> str:
    """Bare when it is one word, else as a JSON string: a line must split back into its fields."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    is_plain = bool(text) and not any(character.isspace() or character in '"=' for character in text)
    return text if is_plain and text.isprintable() else json.dumps(text)
