"""A checker of Chrome's trace event format, as far as complete events, counters and metadata go."""

from typing import Any

REQUIRED = {"name": str, "ph": str, "ts": int, "pid": int, "tid": int}


def check_trace(trace: dict[str, Any]) -> None:
    """Asserts that a viewer can draw it: fields and types, sorted by time, slices nested on each thread."""
    open_slices: dict[tuple[int, int], list[int]] = {}  # by thread, where each ends
    last = 0
    for event in trace["traceEvents"]:
        assert all(type(event.get(name)) is kind for name, kind in REQUIRED.items()), event
        assert event["ph"] in ("X", "C", "M"), event
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name"), event
            assert isinstance(event["args"]["name"], str), event
            continue
        assert event["ts"] >= last, f"{event} comes after one at {last}"
        last = event["ts"]
        if event["ph"] == "C":
            assert event["args"], event
            assert all(type(value) is int and value >= 0 for value in event["args"].values()), event
        else:
            _check_slice(event, open_slices.setdefault((event["pid"], event["tid"]), []))


def _check_slice(event: dict[str, Any], ends: list[int]) -> None:
    """`ends` are those of the slices it may lie within, innermost last."""
    assert type(event.get("dur")) is int, event
    assert event["dur"] >= 0, event
    while ends and ends[-1] <= event["ts"] and not (event["dur"] == 0 and ends[-1] == event["ts"]):
        ends.pop()
    assert not ends or event["ts"] + event["dur"] <= ends[-1], f"{event} sticks out of the slice it began in"
    ends.append(event["ts"] + event["dur"])
