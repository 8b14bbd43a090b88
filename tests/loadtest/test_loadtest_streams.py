"""Bytes to events, events to times and counts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.record import RequestError
from loadtest.sse import SSEParser
from loadtest.stream import StreamReading

PAYLOADS = st.lists(
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), max_size=6
)


@given(payloads=PAYLOADS, newline=st.sampled_from(["\n", "\r\n"]), comment=st.booleans(), data=st.data())
def test_events_are_the_same_however_the_bytes_are_cut(payloads, newline, comment, data):
    noise = f": keep-alive{newline}{newline}event: message{newline}" if comment else ""
    stream = "".join(f"{noise}data: {payload}{newline}{newline}" for payload in payloads).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser, found = SSEParser(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += parser.feed(stream[start:end])
    assert [event.decode() for event in found] == payloads


def test_several_data_lines_are_one_event_and_a_missing_space_is_fine():
    assert SSEParser().feed(b"data:one\ndata: two\nid: 7\n\n") == [b"one\ntwo"]


def test_an_event_without_its_blank_line_is_not_delivered():
    parser = SSEParser()
    assert parser.feed(b"data: early\n") == []
    assert parser.feed(b"\n") == [b"early"]


def event(text="", finish=None, tokens=None, **more):
    fields = {"choices": [{"text": text, "finish_reason": finish}], **more}
    return json.dumps(fields | ({"usage": {"completion_tokens": tokens}} if tokens is not None else {})).encode()


def read(*events, continuous=False):
    reading = StreamReading(continuous)
    for payload, now in events:
        reading.observe(payload, now)
    return reading


def test_gaps_are_per_chunk_without_continuous_usage():
    reading = read((event("a"), 1.0), (event("bc"), 1.5), (event("d"), 2.5), (event("", "stop", 4), 2.75))
    assert reading.first == 1.0
    assert reading.itls == [0.5, 1.0]
    assert reading.output_tokens == 4
    assert reading.tpot == 1.5 / 3
    assert reading.complete


def test_gaps_are_per_token_with_continuous_usage():
    reading = read((event("a", tokens=1), 1.0), (event("bcd", tokens=4), 2.5), continuous=True)
    assert reading.itls == [0.5, 0.5, 0.5]
    assert (reading.output_tokens, reading.num_chunks, reading.tpot) == (4, 2, 0.5)


def test_chunks_read_together_share_the_time_since_the_one_before():
    together = [(event("b"), 2.5), (event("c"), 2.5), (event("d"), 2.5)]
    reading = read((event("a"), 1.0), *together, (event("e"), 2.75), (event("f"), 2.75))
    assert reading.itls == [0.5, 0.5, 0.5, 0.125, 0.125]


def test_continuous_usage_counts_a_token_whose_text_is_still_held_back():
    reading = read((event("a", tokens=1), 1.0), (event("", tokens=2), 2.0), continuous=True)
    assert reading.itls == [1.0]


def test_chunks_are_counted_where_the_server_gives_no_usage():
    reading = read((event("a"), 1.0), (event("b"), 2.0), (b"[DONE]", 2.0))
    assert reading.output_tokens == 2
    assert reading.complete


def test_a_chat_role_chunk_is_not_the_first_token():
    role = b'{"choices":[{"delta":{"role":"assistant","content":""}}]}'
    word = b'{"choices":[{"delta":{"content":"hi"}}]}'
    assert read((role, 1.0), (word, 2.0)).first == 2.0


def test_an_answer_of_one_chunk_has_no_time_per_output_token():
    assert read((event("abc", "stop", 3), 1.0)).tpot is None


def test_an_error_event_is_a_stream_error_with_its_message():
    with pytest.raises(RequestError, match=r"stream_error: .*engine gone"):
        read((b'{"error": {"message": "engine gone"}}', 1.0))


@pytest.mark.parametrize("payload", [b"{", b"[]", b'{"choices": 5}', b'{"choices":[{"text":3}]}', b"\xff"])
def test_what_is_not_an_event_is_malformed(payload):
    with pytest.raises(RequestError, match="malformed"):
        read((payload, 1.0))


def test_a_null_error_is_no_error():
    assert read((b'{"error": null, "choices": [{"text": "a"}]}', 1.0)).num_chunks == 1
