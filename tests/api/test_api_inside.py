"""Blocks, timeline and limits over HTTP: whole, bounded, behind the key, and silent about other tenants."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from api_apps import QUEUE, client_of, make_app
from api_requests import error_of
from fake_engine import FakeEngine, info

from server.api import admission, fields, json_guard, settings
from server.api.inside import salt_prefix
from server.api.settings import ApiSettings
from server.engine.config import EngineConfig
from server.engine.inspection import Inspection, PrefixBlock, SequenceBlocks
from server.engine.sampling.ranges import MAX_LOGIT_BIAS, MAX_TOKEN_LIST, RANGES
from server.engine.types import SequenceStep, StepStats
from server.errors import EngineUnavailable, QueueFull
from server.origins import Origin
from server.records import StepTimings
from server.timeline import MAX_SECONDS, Timeline

pytestmark = pytest.mark.anyio

PATHS = ("/v1/engine/blocks", "/v1/engine/timeline", "/v1/limits")
KEYS = ("key-a", "key-b")
TENANTS = tuple(hashlib.sha256(key.encode()).hexdigest() for key in KEYS)
INSPECTION = Inspection(
    num_blocks=20,
    num_free=10,
    num_cached=4,
    num_referenced=6,
    num_sequences=3,
    sequences=(
        SequenceBlocks(5, True, 20, 3, 22, 2, (7, 8)),
        SequenceBlocks(-2, True, 1, 3, 3, 1, (9,)),
        SequenceBlocks(6, False, 40, 0, 0, 0, ()),
    ),
    num_other_sequences=2,
    others=(3, 0),
    num_prefix_blocks=5,
    prefix_blocks=(PrefixBlock(7, b"\x01" * 16, None, 1, None), PrefixBlock(3, b"\xab" * 16, b"\x01" * 16, 0, 1)),
)
STEP = StepStats(50.0, 0.010, 0.001, 0.0, 0.006, 0.002, 0, 0, 0, 0, 0, 0, 1, 2, 3, 20, 10, 4)


def timeline_of(*sequences: SequenceStep, num_steps: int = 1) -> Timeline:
    timeline = Timeline(["tiny"])
    for number in range(num_steps):
        timeline.on_step("tiny", replace(STEP, started_at=50.0 + number, sequences=sequences), StepTimings())
    return timeline


async def get(client: httpx.AsyncClient, path: str, **query: object) -> dict[str, Any]:
    answer = await client.get(path, params={name: str(value) for name, value in query.items()})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return dict(answer.json())


def limits_by_name(answer: dict[str, Any], group: str) -> dict[str, dict[str, Any]]:
    found = {limit["name"]: limit for limit in answer[group]}
    assert len(found) == len(answer[group])
    return found


async def test_blocks_are_told_by_the_ids_that_answers_carry(engine: FakeEngine, client: httpx.AsyncClient) -> None:
    engine.inspection = INSPECTION
    engine.origins = {5: Origin("cmpl-1", 0, ""), 6: Origin("cmpl-2", 3, "")}
    answer = await get(client, "/v1/engine/blocks")
    assert answer["blocks"] == {"total": 20, "free": 10, "cached": 4, "referenced": 6}
    assert [(one["owner"], one.get("id"), one.get("index")) for one in answer["sequences"]] == [
        ("self", "cmpl-1", 0),
        ("self", None, None),  # the engine's own, for one of the asker's
        ("self", "cmpl-2", 3),
        ("other", None, None),
        ("other", None, None),
    ]
    assert answer["sequences"][0] == {
        "owner": "self",
        "id": "cmpl-1",
        "index": 0,
        "state": "running",
        "prompt_tokens": 20,
        "output_tokens": 3,
        "computed_tokens": 22,
        "num_blocks": 2,
        "blocks": [7, 8],
    }
    assert answer["sequences"][2]["state"] == "waiting"
    assert answer["sequences"][3:] == [{"owner": "other", "num_blocks": 3}, {"owner": "other", "num_blocks": 0}]
    assert answer["num_sequences"] == 5
    assert answer["prefix_tree"] == [
        {"hash": "01" * 16, "parent": None, "block": 7, "references": 1, "eviction_rank": None},
        {"hash": "ab" * 16, "parent": "01" * 16, "block": 3, "references": 0, "eviction_rank": 1},
    ]
    assert answer["num_prefix_blocks"] == 5


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_key_nothing_is_seen(path: str) -> None:
    engine = FakeEngine()
    async with client_of(make_app(engine, settings=ApiSettings(api_keys=KEYS))) as client:
        error_of(await client.get(path), 401)
    assert engine.inspected == []


async def test_the_engine_is_asked_for_the_key_holders_salts_only() -> None:
    engine = FakeEngine()
    for key in KEYS:
        async with client_of(
            make_app(engine, settings=ApiSettings(api_keys=KEYS)), authorization=f"Bearer {key}"
        ) as client:
            await get(client, "/v1/engine/blocks", limit=9)
    assert engine.inspected == [("tiny", f"{tenant}|", 9) for tenant in TENANTS]


@pytest.mark.parametrize("asked", [None, "", "x", "|", f"{TENANTS[1]}|"])
def test_every_salt_of_a_tenant_begins_with_his_prefix_and_with_no_other(asked: str | None) -> None:
    """Whatever cache_salt he sends."""
    salt = admission.cache_salt(TENANTS[0], asked)
    assert salt.startswith(salt_prefix(TENANTS[0]))
    assert not salt.startswith(salt_prefix(TENANTS[1]))
    assert admission.cache_salt("", asked).startswith(salt_prefix(""))


async def test_one_tenants_timeline_shows_nothing_of_anothers() -> None:
    engine = FakeEngine()
    engine.origins = {n: Origin(f"cmpl-of-{n}", 0, f"{tenant}|salt-{n}") for n, tenant in enumerate(TENANTS)}
    timeline = timeline_of(SequenceStep(0, 1111, 0, 0, 0), SequenceStep(1, 2222, 0, 44, 33))
    app = make_app(engine, settings=ApiSettings(api_keys=KEYS), timeline=timeline)
    for mine, key in enumerate(KEYS):
        async with client_of(app, authorization=f"Bearer {key}") as client:
            trace = await get(client, "/v1/engine/timeline")
        (args,) = [event["args"] for event in trace["traceEvents"] if event["name"] == "step"]
        assert [one["id"] for one in args["sequences"]] == [f"cmpl-of-{mine}"]
        assert args["others"]["prompt_tokens"] == (2222, 1111)[mine]
        text = json.dumps(trace)
        assert f"cmpl-of-{1 - mine}" not in text
        assert "salt" not in text
        assert not any(tenant in text for tenant in TENANTS)
        assert ("33" in text) == (mine == 1)  # how much was accepted


async def test_the_timeline_is_a_chrome_trace_of_the_seconds_asked_for(engine: FakeEngine) -> None:
    engine.origins = {0: Origin("cmpl-0", 0, "")}
    timeline = timeline_of(SequenceStep(0, 3, 0, 0, 0), num_steps=30)
    async with client_of(make_app(engine, timeline=timeline)) as client:
        for seconds, expected in ((1, 1), (5, 5), (60, 30)):
            trace = await get(client, "/v1/engine/timeline", seconds=seconds, model="tiny")
            assert trace["displayTimeUnit"] == "ms"
            assert [event["name"] for event in trace["traceEvents"][:2]] == ["process_name", "thread_name"]
            assert len([event for event in trace["traceEvents"] if event["name"] == "step"]) == expected
            assert all({"ph", "ts", "pid", "tid"} <= event.keys() for event in trace["traceEvents"])


async def test_an_idle_engine_has_an_empty_timeline(client: httpx.AsyncClient) -> None:
    trace = await get(client, "/v1/engine/timeline")
    assert {event["ph"] for event in trace["traceEvents"]} == {"M"}


@pytest.mark.parametrize(
    ("path", "query", "parameter", "parts"),
    [
        ("/v1/engine/timeline", "seconds=0", "seconds", ["0", "between 1 and 60"]),
        ("/v1/engine/timeline", "seconds=61", "seconds", ["61", "between 1 and 60"]),
        ("/v1/engine/timeline", "seconds=1.5", "seconds", ["1.5", "integer"]),
        ("/v1/engine/timeline", "seconds=" + "9" * 5000, "seconds", ["999...", "integer"]),
        ("/v1/engine/timeline", "seconds=1&seconds=2", "seconds", ["twice"]),
        ("/v1/engine/timeline", "seconds=%D9%A3", "seconds", ["integer"]),
        ("/v1/engine/timeline", "secs=1", "secs", ["Unknown parameter"]),
        ("/v1/engine/blocks", "limit=-1", "limit", ["-1", "between 1 and 4096"]),
        ("/v1/engine/blocks", "limit=4097", "limit", ["4097", "4096"]),
        ("/v1/engine/blocks", "limit=", "limit", ["integer"]),
        ("/v1/engine/blocks", "seconds=1", "seconds", ["Unknown parameter"]),
        ("/v1/limits", "model=tiny", "model", ["Unknown parameter"]),
    ],
)
async def test_bad_queries_name_field_value_and_limit(
    client: httpx.AsyncClient, path: str, query: str, parameter: str, parts: list[str]
) -> None:
    error = error_of(await client.get(f"{path}?{query}"))
    assert error["param"] == parameter
    assert all(part in error["message"] for part in parts), error


@pytest.mark.parametrize("path", PATHS[:2])
async def test_a_model_that_is_not_served_is_a_404(client: httpx.AsyncClient, path: str) -> None:
    assert error_of(await client.get(f"{path}?model=huge"), 404)["param"] == "model"


@pytest.mark.parametrize("refusal", [EngineUnavailable("the engine is restarting"), QueueFull(1)])
async def test_an_engine_that_is_dead_or_asked_too_much_is_a_503(
    engine: FakeEngine, client: httpx.AsyncClient, refusal: EngineUnavailable | QueueFull
) -> None:
    engine.refusal = refusal
    answer = await client.get("/v1/engine/blocks")
    error_of(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1


async def test_limits_are_those_in_force(engine: FakeEngine) -> None:
    engine.known = {"tiny": info(context_length=333)}
    in_force = ApiSettings(max_body_bytes=1001, max_prompts=12, max_choices=13, max_sequences=14)
    async with client_of(make_app(engine, settings=in_force)) as client:
        answer = await get(client, "/v1/limits")
    body, lists = limits_by_name(answer, "body"), limits_by_name(answer, "lists")
    server, parameters = limits_by_name(answer, "server"), limits_by_name(answer, "parameters")
    assert body["body_bytes"] == {"name": "body_bytes", "max": 1001, "flag": "--max-body-bytes"}
    assert body["json_depth"]["max"] == json_guard.MAX_DEPTH
    assert body["json_items"]["max"] == json_guard.MAX_ITEMS
    assert lists["prompts"] == {"name": "prompts", "max": 12, "parameter": "prompt", "flag": "--max-prompts"}
    assert lists["sequences"]["max"] == 14
    assert lists["stop_strings"]["max"] == settings.MAX_STOP_STRINGS
    assert lists["biased_tokens"]["max"] == MAX_TOKEN_LIST
    assert lists["sequence_breakers"]["max"] == fields.MAX_SEQUENCE_BREAKERS
    assert lists["candidates"] == {"name": "candidates", "max": admission.MAX_CANDIDATES, "parameter": "logprobs"}
    assert lists["cache_salt_characters"]["max"] == 256
    assert lists["negative_prompt_characters"]["max"] == settings.LONG_TEXT
    assert lists["seeds"] == {"name": "seeds", "max": 16, "min": 1, "parameter": "seeds"}
    assert parameters["n"] == {"name": "n", "max": 13, "min": 1, "parameter": "n", "flag": "--max-choices"}
    assert parameters["logit_bias"]["min"] == -MAX_LOGIT_BIAS
    assert server["waiting_sequences"]["max"] == QUEUE.max_waiting
    assert server["running_sequences"]["max"] == EngineConfig().max_running
    assert server["timeline_seconds"]["max"] == MAX_SECONDS
    (context, *_) = answer["models"]["tiny"]
    assert context == {"name": "context_length", "max": 333, "parameter": "max_tokens"}


async def test_every_range_of_the_engines_table_is_told(client: httpx.AsyncClient) -> None:
    told = limits_by_name(await get(client, "/v1/limits"), "parameters")
    for name, allowed in RANGES.items():
        assert told[name]["max"] == allowed.high
        assert told[name]["min"] == (-1 if name == "top_k" else allowed.low)
        assert told[name].get("above_min", False) == allowed.above
    assert told["seed"]["max"] == 2**64 - 1


async def test_a_value_beyond_a_told_range_is_refused_and_one_at_its_end_is_not(client: httpx.AsyncClient) -> None:
    told = limits_by_name(await get(client, "/v1/limits"), "parameters")
    for name in ("temperature", "top_p", "typical_p", "repetition_penalty", "presence_penalty", "n", "top_k", "seed"):
        for value, status in ((told[name]["max"], 200), (told[name]["max"] + 1, 400), (told[name]["min"] - 1, 400)):
            body = {"model": "tiny", "prompt": "x", "max_tokens": 1, name: value}
            answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == status, (name, value, answer.text)


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("length_penalty", {"beam_width": 2}),
        ("diversity_penalty", {"beam_width": 4, "num_beam_groups": 2}),
        ("num_beam_groups", {"beam_width": 16, "diversity_penalty": 1}),
        ("guidance_scale", {}),
    ],
)
async def test_what_is_told_of_searches_and_guidance_is_what_is_in_force(
    client: httpx.AsyncClient, name: str, beside: dict[str, object]
) -> None:
    told = limits_by_name(await get(client, "/v1/limits"), "parameters")[name]
    for value, status in ((told["max"], 200), (told["max"] + 1, 400), (told["min"] - 1, 400)):
        body = {"model": "tiny", "prompt": "x", "max_tokens": 1, name: value, **beside}
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == status, (value, answer.text)


async def test_every_parameter_a_limit_names_is_one_of_a_request(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()["components"]["schemas"]
    known = {name for schema in document.values() for name in schema.get("properties", ())}
    answer = await get(client, "/v1/limits")
    limits = [limit for group in ("body", "lists", "parameters") for limit in answer[group]]
    named = {limit["parameter"] for limit in limits if "parameter" in limit}
    assert named <= known
    assert len(named) > 25
