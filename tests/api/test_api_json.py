"""Bodies: strict JSON within bounds, read within a bound."""

import contextlib
import json
import tracemalloc
from collections.abc import AsyncIterator

import httpx
import pytest
from api_apps import client_of, make_app
from api_requests import error_of, refused
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from server.api.json_guard import MAX_DEPTH, MAX_ITEMS, MAX_KEYS, MAX_VALUES, parse_json_object, shown
from server.api.settings import ApiSettings
from server.errors import BadRequest

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def refusal(body: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse_json_object(body)
    return caught.value


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.booleans())
def test_valid_json_is_read_as_the_standard_library_reads_it(value: dict[str, object], ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json_object(text.encode()) == json.loads(text)


@given(st.text('[]{}",:\\ua0d8\n ', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(BadRequest):
        parse_json_object(text.encode())


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b'{"a": 1} {}', "not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b'{"a": "\x00"}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid UTF-8 at byte 7"),
        (b'{"a": "\xed\xa0\x80"}', "not valid UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": ["\\udc00\\ud800"]}', "surrogate"),
        (b'{"\\ud800": 1}', "surrogate"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": [-Infinity]}', "-Infinity"),
        (b'{"a": 1e999}', "1e999"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", "must be a JSON object; it is an array"),
        (b"null", "it is null"),
        (b"true", "it is a boolean"),
        (b'"a"', "it is a string"),
        (b"1", "it is a number"),
    ],
)
def test_what_is_not_strict_json_is_refused(body: bytes, complaint: str) -> None:
    assert complaint in refusal(body).message


def test_escaped_pairs_of_surrogates_and_nul_are_text() -> None:
    assert parse_json_object(b'{"a": "\\ud83d\\ude00\\u0000"}') == {"a": "\U0001f600\0"}


@pytest.mark.parametrize("body", [b'{"n": 1, "n": 1}', b'{"a": {"n": 1, "\\u006e": 2}}'])
def test_duplicate_keys_are_refused_by_name(body: bytes) -> None:
    error = refusal(body)
    assert error.parameter == "n"
    assert '"n"' in error.message


def test_a_duplicate_key_that_is_no_text_can_be_answered() -> None:
    error = refusal(b'{"\\ud800": 1, "\\ud800": 2}')
    assert error.parameter == "?"
    error.message.encode()


def test_depth_is_bounded_exactly_and_brackets_in_strings_do_not_count() -> None:
    deepest = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b'"[[{\\"["' + b"]" * (MAX_DEPTH - 1) + b"}"
    assert "a" in parse_json_object(deepest)
    assert f"{MAX_DEPTH} levels" in refusal(deepest.replace(b'"[[{\\"["', b"[]")).message


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_a_bomb_of_brackets_is_refused_without_recursion(opening: bytes) -> None:
    assert "levels deep" in refusal(opening * 500_000).message


@pytest.mark.parametrize("ending", [b"]" * 2_000_000, b'"' + b'\\"' * 1_000_000, b"\\" * 2_000_000])
def test_a_body_that_goes_on_after_its_end_is_not_scanned_in_vain(ending: bytes) -> None:
    assert "not valid JSON" in refusal(b"{}" + ending).message


def test_numbers_of_items_and_keys_are_bounded() -> None:
    for item in (b"[],", b"{},", b'"",'):
        parse_json_object(b'{"a": [' + item * (MAX_ITEMS - 3) + b"0]}")
        assert "arrays and objects" in refusal(b'{"a": [' + item * (MAX_ITEMS - 2) + b"0]}").message
    keys = ",".join(f'"{index}": 0' for index in range(MAX_KEYS + 1))
    assert f"the limit is {MAX_KEYS}" in refusal(b"{" + keys.encode() + b"}").message


@pytest.mark.parametrize("number", [b"1", b"-2.5e3", b"null", b" 7 "])
def test_the_number_of_scalars_is_bounded_and_commas_in_strings_do_not_count(number: bytes) -> None:
    def body(count: int, more: bytes = b"") -> bytes:
        return b'{"a": [' + b",".join([number] * count) + b'], "b": "' + b"," * 1_000_000 + b'"' + more + b"}"

    parse_json_object(body(MAX_VALUES - 1))  # and the string, which its comma counts for
    assert f"more than {MAX_VALUES} values" in refusal(body(MAX_VALUES)).message
    assert "values" in refusal(body(MAX_VALUES - 1, b', "c": 1')).message


@pytest.mark.parametrize("ending", [b"", b"]}", b"]]"])
def test_an_array_of_millions_of_numbers_is_refused_before_it_is_made(ending: bytes) -> None:
    body = b'{"a": [' + b"1," * 2_000_000 + b"1" + ending
    tracemalloc.start()
    try:
        assert "values" in refusal(body).message
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * len(body)  # the text itself


@given(VALUES | st.integers(min_value=10**90, max_value=10**400))
def test_quoted_values_are_short(value: object) -> None:
    assert len(shown(value)) < 1200


@pytest.mark.anyio
async def test_a_body_up_to_the_limit_is_read_and_one_byte_more_is_not(engine: FakeEngine) -> None:
    body = json.dumps({"model": "tiny", "prompt": "hi"}).encode()
    async with client_of(make_app(engine, settings=ApiSettings(max_body_bytes=len(body)))) as client:
        assert (await client.post("/v1/completions", content=body)).status_code == 200
        error = error_of(await client.post("/v1/completions", content=body + b" "), 413)
    assert error["code"] == "body_too_large"
    assert str(len(body)) in str(error["message"])


@pytest.mark.anyio
@pytest.mark.parametrize("claimed", [None, "5", "-1", "99999999999999999999999", "x"])
async def test_reading_stops_at_the_limit_whatever_content_length_says(claimed: str | None) -> None:
    num_read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_read
        for _ in range(100):
            num_read += 1
            yield b" " * 100

    app = make_app(FakeEngine(), settings=ApiSettings(max_body_bytes=1000))
    headers = {} if claimed is None else {"content-length": claimed}
    async with client_of(app) as client:
        error_of(await client.post("/v1/completions", content=endless(), headers=headers), 413)
    assert num_read == 11


@pytest.mark.anyio
async def test_an_honest_content_length_over_the_limit_is_believed_without_reading() -> None:
    async def unread() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    app = make_app(FakeEngine(), settings=ApiSettings(max_body_bytes=1000))
    async with client_of(app) as client:
        error_of(await client.post("/v1/completions", content=unread(), headers={"content-length": "1001"}), 413)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", None])
async def test_json_and_unlabelled_bodies_are_read(client: httpx.AsyncClient, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = await client.post("/v1/completions", content=b'{"model": "tiny", "prompt": "hi"}', headers=headers)
    assert answer.status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_other_media_types_are_refused(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post("/v1/completions", content=b"{}", headers={"content-type": kind})
    assert error_of(answer, 415)["code"] == "unsupported_media_type"


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
async def test_every_endpoint_with_a_body_guards_it(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, content=b'{"model": "tiny", "model": "tiny"}')
    assert error_of(answer)["param"] == "model"
    assert (await refused(client, path, {"model": "tiny", "tempurature": 1}))["code"] == "unknown_parameter"
