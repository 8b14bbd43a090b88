"""The whole server from outside: what is promised of the engine holds through both processes and HTTP."""

import concurrent.futures
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import generate

NAMES = ("gpt", "gqa", "moe")
SAMPLED = {
    "prompt": "to be or not",
    "max_tokens": 40,
    "temperature": 0.9,
    "top_p": 0.95,
    "seed": 11,
    "ignore_eos": True,
}


@pytest.fixture
def client(server_url: str) -> Any:
    with httpx.Client(base_url=server_url, timeout=60) as client:
        yield client


def complete(client: httpx.Client, **fields: object) -> dict[str, Any]:
    response = client.post("/v1/completions", json={**SAMPLED, "return_token_ids": True, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def essence(choice: dict[str, Any]) -> tuple[object, ...]:
    return choice["text"], choice["token_ids"], choice["logprobs"], choice["finish_reason"]


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of a metric's series that carry these labels."""
    series = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert series, f"there is no metric {name}"
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(float(value) for keys, value in series if all(label in keys for label in wanted))


@pytest.mark.parametrize("model", NAMES)
def test_an_answer_is_the_same_alone_and_in_a_crowd(client: httpx.Client, model: str) -> None:
    alone = [complete(client, model=model, seed=seed, logprobs=3)["choices"][0] for seed in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        crowd = list(
            pool.map(lambda seed: complete(client, model=model, seed=seed, logprobs=3)["choices"][0], range(12))
        )
    assert [essence(choice) for choice in crowd] == [essence(choice) for choice in alone]
    assert len({choice["text"] for choice in alone}) > 6


@pytest.mark.parametrize("model", NAMES)
def test_streamed_text_joined_is_the_text(client: httpx.Client, model: str) -> None:
    whole = complete(client, model=model)["choices"][0]["text"]
    pieces = []
    with client.stream("POST", "/v1/completions", json={**SAMPLED, "model": model, "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                pieces.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
    assert "".join(pieces) == whole


def test_several_choices_are_single_requests_with_the_seeds_they_report(client: httpx.Client) -> None:
    choices = complete(client, model="gqa", n=3, logprobs=2)["choices"]
    singles = [complete(client, model="gqa", seed=choice["seed"], logprobs=2)["choices"][0] for choice in choices]
    assert [essence(choice) for choice in choices] == [essence(single) for single in singles]


def test_an_unseeded_answer_can_be_replayed_from_the_seed_it_reports(client: httpx.Client) -> None:
    first = complete(client, model="moe", seed=None)["choices"][0]
    assert essence(complete(client, model="moe", seed=first["seed"])["choices"][0]) == essence(first)


def test_the_command_line_generates_what_the_server_answers(client: httpx.Client, checkpoints: Path) -> None:
    answer = complete(client, model="gqa", ignore_eos=False)["choices"][0]["text"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        flags = ["--max-tokens", "40", "--temperature", "0.9", "--top-p", "0.95", "--seed", "11", "--max-running", "16"]
        assert generate.main([str(checkpoints / "gqa"), "to be or not", *flags]) == 0
    assert printed.getvalue() == f"to be or not{answer}\n"


def test_a_repeated_prompt_comes_from_the_prefix_cache_with_the_same_answer(client: httpx.Client) -> None:
    fields = {"model": "gpt", "prompt": list(range(100)), "cache_salt": "test"}
    first, second = complete(client, **fields), complete(client, **fields)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 96
    assert essence(first["choices"][0]) == essence(second["choices"][0])


def test_a_client_that_leaves_gives_its_blocks_back(client: httpx.Client) -> None:
    body = {**SAMPLED, "model": "gpt", "max_tokens": 200, "stream": True, "n": 4}
    with client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
    while metric(client, "minigpt_sequences_in_flight", model="gpt"):
        pass
    while metric(client, "minigpt_kv_blocks", model="gpt", state="used"):
        complete(client, model="gpt", max_tokens=1)  # gauges are as of the last step


def test_started_requests_are_the_sum_of_outcomes_and_those_in_flight(client: httpx.Client) -> None:
    complete(client, model="gqa")
    for unit in ("requests", "sequences"):
        started = metric(client, f"minigpt_{unit}_started_total")
        ended = metric(client, f"minigpt_{unit}_finished_total")
        assert started == ended + metric(client, f"minigpt_{unit}_in_flight") > 0
