"""Tokens that go straight to the connection: the stream is the same as when its task tells every one."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle

import pytest
from api_apps import client_of, make_app
from api_requests import Json, complete, stream
from fake_engine import FakeEngine, Script, recite
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from server.api.direct_send import offer_direct_body
from server.engine.types import SequenceOutput, SequenceRequest

pytestmark = pytest.mark.anyio

COMPLETIONS = "/v1/completions"
BODIES: dict[str, Json] = {
    COMPLETIONS: {"prompt": "Say:", "seed": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "seed": 3},
}


class Body:
    """A DirectBody that takes a piece where `is_ready` says so."""

    def __init__(self, send: Send, is_ready: Iterator[bool]) -> None:
        self._send = send
        self._is_ready = is_ready
        self.num_taken = 0

    def write(self, piece: bytes) -> bool:
        if not next(self._is_ready):
            return False
        self.num_taken += 1
        sending = self._send({"type": "http.response.body", "body": piece, "more_body": True})
        with pytest.raises(StopIteration):  # over at once, which is what is promised
            sending.__await__().__next__()
        return True


async def streamed(engine: FakeEngine, path: str, body: Json, readiness: list[bool]) -> tuple[list[Json], int]:
    """The events of a stream whose connection takes pieces directly by turns, and how many it took."""
    bodies: list[Body] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        bodies.append(Body(send, cycle(readiness)))
        offer_direct_body(scope, bodies[-1])
        await make_app(engine)(scope, receive, send)

    async with client_of(app) as client:
        events = await stream(client, path, body)
    return events, bodies[0].num_taken


def by_choice(events: list[Json]) -> dict[int | None, list[Json]]:
    """Each choice's events in order, and those of none; choices do not wait for each other."""
    told: dict[int | None, list[Json]] = {}
    for event in events:
        told.setdefault(event["choices"][0]["index"] if event["choices"] else None, []).append(event)
    return told


def engine_saying(text: str) -> Callable[[], FakeEngine]:
    return lambda: FakeEngine(reply=recite(text.encode()))


VARIANTS: list[Json] = [
    {},
    {"n": 3},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True}, "speculative": {"method": "ngram"}, "n": 2},
    {"stream_options": {"continuous_usage_stats": True}},
    {"stop": ["she"]},
    {"return_token_ids": True},
]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("readiness", [[True], [True, False], [False, False, True]])
async def test_a_stream_is_the_same_with_and_without_a_way_past_its_task(
    path: str, fields: Json, readiness: list[bool]
) -> None:
    if path != COMPLETIONS:
        fields = {name: value for name, value in fields.items() if name != "return_token_ids"}
    make_engine = engine_saying('"é\\\n\0", she said')
    quick, _ = await streamed(make_engine(), path, {**BODIES[path], **fields}, readiness)
    slow, num_taken = await streamed(make_engine(), path, {**BODIES[path], **fields}, [False])
    assert by_choice(quick) == by_choice(slow)
    assert num_taken == 0


@given(st.text('ab"é\U0001f600', max_size=12), st.lists(st.booleans(), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
async def test_any_text_and_any_pace_of_the_client_give_the_same_stream(text: str, readiness: list[bool]) -> None:
    make_engine = engine_saying(text)
    quick, _ = await streamed(make_engine(), COMPLETIONS, BODIES[COMPLETIONS], readiness)
    slow, _ = await streamed(make_engine(), COMPLETIONS, BODIES[COMPLETIONS], [False])
    assert quick == slow


@pytest.mark.parametrize(("text", "expected"), [("abcdef", 5), ("aéb", 1), ("é" * 4, 0)])
async def test_only_tokens_of_whole_characters_go_past_the_task(text: str, expected: int) -> None:
    """The first is told by the task, and the end of text."""
    _, num_taken = await streamed(engine_saying(text)(), COMPLETIONS, BODIES[COMPLETIONS], [True])
    assert num_taken == expected


async def test_a_byte_that_is_no_character_is_not_overtaken_by_the_text_behind_it() -> None:
    def make_engine() -> FakeEngine:
        return FakeEngine(reply=recite(b"a\xc3bc"))

    events, _ = await streamed(make_engine(), COMPLETIONS, BODIES[COMPLETIONS], [True])
    async with client_of(make_app(make_engine())) as client:
        whole = await complete(client, seed=3)
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    assert text == whole["choices"][0]["text"] == "a\ufffdbc"


async def test_steps_that_went_past_the_task_count_among_those_with_drafts() -> None:
    def reply(request: SequenceRequest) -> Script:
        plain = [SequenceOutput(0, (byte,)) for byte in b"abcdef"]
        drafted = SequenceOutput(0, tuple(b"xyz"), num_drafted=3, num_accepted=2)
        return [*plain[:3], drafted, *plain[3:], replace(drafted, finish_reason="length")]

    options: Json = {"stream_options": {"include_usage": True}, "speculative": {"method": "ngram"}}
    events, num_taken = await streamed(FakeEngine(reply=reply), COMPLETIONS, BODIES[COMPLETIONS] | options, [True])
    assert num_taken == 5
    assert events[-1]["usage"]["completion_tokens"] == 12
    assert events[-1]["usage"]["completion_tokens_details"]["tokens_per_target_step"] == 12 / 8


async def test_a_streams_answer_can_be_forked_at_tokens_that_went_past_its_task() -> None:
    engine = engine_saying("abcdef")()
    app = make_app(engine)

    async def direct(scope: Scope, receive: Receive, send: Send) -> None:
        offer_direct_body(scope, Body(send, cycle([True])))
        await app(scope, receive, send)

    async with client_of(direct) as client:
        events = await stream(client, COMPLETIONS, BODIES[COMPLETIONS])
        fork = {"id": events[0]["id"], "choice": 0, "at_token": 4}
        answer = await client.post(COMPLETIONS, json={"model": "tiny", "fork": fork})
    assert answer.status_code == 200, answer.text
    assert engine.requests[1][0].prompt[-4:] == tuple(b"abcd")
