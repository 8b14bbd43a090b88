"""Beam search and classifier-free guidance as clients ask for them: what the engine is told, and what is refused."""

import httpx
import pytest
from api_apps import client_of, make_app, with_template
from api_requests import Json, chat, choice_of, complete, refused, stream
from core_engine import CoreEngine
from fake_engine import FakeEngine

from server.engine.types import BeamSearch, Guidance, SequenceRequest, Speculation

pytestmark = pytest.mark.anyio

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


async def asked_for(**fields: object) -> list[SequenceRequest]:
    """The sequences that a completion becomes."""
    engine = FakeEngine()
    async with client_of(make_app(engine)) as client:
        await complete(client, **fields)
    return engine.requests[0]


async def asked_for_in_a_chat(**fields: object) -> list[SequenceRequest]:
    engine = FakeEngine()
    async with client_of(make_app(engine, with_template(TEMPLATE))) as client:
        await chat(client, **fields)
    return engine.requests[0]


async def refusal(client: httpx.AsyncClient, **fields: object) -> tuple[str, str]:
    """The parameter a request is refused for, and the message."""
    error = await refused(client, "/v1/completions", {"model": "tiny", "prompt": "Say:", **fields})
    return error["param"], error["message"]


@pytest.mark.parametrize(
    ("fields", "rules"),
    [
        ({"beam_width": 3}, BeamSearch(3)),
        ({"num_beams": 5}, BeamSearch(5)),
        ({"num_beams": 5, "beam_width": 5, "use_beam_search": True}, BeamSearch(5)),
        ({"use_beam_search": True}, BeamSearch(4)),
        ({"beam_width": 2, "length_penalty": 0.5, "early_stopping": True}, BeamSearch(2, 0, 0.5, True)),
        ({"beam_width": 2, "early_stopping": "never"}, BeamSearch(2, early_stopping="never")),
        (
            {"beam_width": 6, "num_beam_groups": 3, "diversity_penalty": 1},
            BeamSearch(6, num_groups=3, diversity_penalty=1.0),
        ),
        ({"beam_width": 2, "temperature": 0, "top_k": -1, "top_p": 1, "seed": 3}, BeamSearch(2)),
        ({"beam_width": 2, "speculative": {"method": "auto"}}, BeamSearch(2)),
    ],
)
async def test_the_engine_is_told_the_rules(fields: dict[str, object], rules: BeamSearch) -> None:
    (sequence,) = await asked_for(**fields)
    assert sequence.beams == rules
    assert sequence.speculation == Speculation()
    (sequence,) = await asked_for_in_a_chat(**fields)
    assert sequence.beams == rules


@pytest.mark.parametrize("fields", [{}, {"use_beam_search": False}, {"guidance_scale": 1.0}, {"num_beams": None}])
async def test_who_asks_for_nothing_samples(fields: dict[str, object]) -> None:
    (sequence,) = await asked_for(**fields)
    assert (sequence.beams, sequence.guidance) == (None, None)


async def test_every_choice_gets_another_hypothesis_of_its_prompts_search() -> None:
    sequences = await asked_for(prompt=["a", "b"], n=3, use_beam_search=True)
    assert [one.beams.rank for one in sequences if one.beams] == [0, 1, 2, 0, 1, 2]
    assert [one.prompt for one in sequences] == [(97,)] * 3 + [(98,)] * 3


async def test_the_answer_tells_the_rules_and_none_of_the_parameters_of_sampling() -> None:
    async with client_of(make_app(FakeEngine())) as client:
        answer = await complete(client, num_beams=3, early_stopping=True, return_parameters=True)
    told = answer["resolved_parameters"]
    assert told["beam_width"] == {"value": 3, "source": "request"}
    assert told["early_stopping"] == {"value": True, "source": "request"}
    assert told["length_penalty"] == {"value": 1.0, "source": "server"}
    assert not {"temperature", "top_p", "mirostat"} & set(told)
    assert "repetition_penalty" in told


async def test_the_answer_tells_the_guidance() -> None:
    async with client_of(make_app(FakeEngine())) as client:
        answer = await complete(client, guidance_scale=1.5, negative_prompt=[7], return_parameters=True)
    told = answer["resolved_parameters"]
    assert told["guidance_scale"] == {"value": 1.5, "source": "request"}
    assert told["negative_prompt"] == {"value": [7], "source": "request"}


async def test_guidance_by_the_last_token_is_told_as_what_can_be_sent_back() -> None:
    engine = FakeEngine()
    async with client_of(make_app(engine)) as client:
        for prompts, told in ((["ab", "cb"], [98]), (["ab", "c"], None)):
            answer = await complete(client, prompt=prompts, guidance_scale=1.5, return_parameters=True)
            assert answer["resolved_parameters"]["negative_prompt"] == {"value": told, "source": "server"}
            await complete(client, prompt=prompts, guidance_scale=1.5, negative_prompt=told)
            first, again = engine.requests[-2:]
            assert [one.guidance for one in again] == [one.guidance for one in first]


async def test_a_search_is_repeated_by_its_resolved_parameters() -> None:
    body: Json = {"beam_width": 3, "n": 2, "length_penalty": 0.5, "stop": "q", "repetition_penalty": 1.2}
    asking: Json = {"max_tokens": 6, "return_parameters": True, "return_token_ids": True}
    async with client_of(make_app(CoreEngine())) as client:
        first = await complete(client, **asking, **body)
        told = {name: item["value"] for name, item in first["resolved_parameters"].items()}
        again = await complete(client, **{**asking, **told})
    assert not {"samplers", "strategy"} & told.keys()
    assert [choice["token_ids"] for choice in again["choices"]] == [choice["token_ids"] for choice in first["choices"]]


async def test_a_stop_string_cuts_a_hypothesis() -> None:
    async with client_of(make_app(FakeEngine())) as client:
        answer = await complete(client, beam_width=2, stop=[","])
    assert (choice_of(answer)["text"], choice_of(answer)["finish_reason"]) == ("Hello", "stop")


SEARCH: Json = {"beam_width": 3, "n": 3, "max_tokens": 6, "length_penalty": 0.5, "include_stop_str_in_output": True}


async def test_every_hypothesis_tells_its_score() -> None:
    """The sum of its log-probabilities over its length to the power of the penalty."""
    async with client_of(make_app(CoreEngine())) as client:
        answer = await complete(client, **SEARCH, logprobs=0)
    scores = [choice["beam_score"] for choice in answer["choices"]]
    logprobs = [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]]
    assert scores == pytest.approx([sum(own) / len(own) ** 0.5 for own in logprobs])
    assert scores == sorted(scores, reverse=True)


async def test_a_stream_tells_the_score_with_the_last_chunk_only() -> None:
    messages = [{"role": "user", "content": "Say:"}]
    asked: dict[str, Json] = {"/v1/completions": {"prompt": "Say:"}, "/v1/chat/completions": {"messages": messages}}
    for path, question in asked.items():
        async with client_of(make_app(CoreEngine())) as client:
            events = await stream(client, path, {**question, **SEARCH})
            whole = (await client.post(path, json={"model": "tiny", **question, **SEARCH})).json()
        told = [choice for event in events for choice in event["choices"]]
        assert all(("beam_score" in choice) == (choice["finish_reason"] is not None) for choice in told)
        scores = {choice["index"]: choice["beam_score"] for choice in told if choice["finish_reason"]}
        assert scores == {choice["index"]: choice["beam_score"] for choice in whole["choices"]}
        assert len(set(scores.values())) == 3


async def test_what_was_drawn_or_cut_or_not_found_has_no_score() -> None:
    async with client_of(make_app(CoreEngine())) as client:
        drawn = await complete(client, max_tokens=3)
        found = await complete(client, **SEARCH, allowed_token_ids=[65])
        cut = await complete(client, **SEARCH, stop=["A"], allowed_token_ids=[65])
    assert "beam_score" not in choice_of(drawn)
    assert [choice["text"] for choice in found["choices"]] == ["A" * 6, "", ""]
    assert [choice["finish_reason"] for choice in found["choices"]] == ["length", "stop", "stop"]
    assert ["beam_score" in choice for choice in found["choices"]] == [True, False, False]
    assert not any("beam_score" in choice for choice in cut["choices"])


@pytest.mark.parametrize(
    ("fields", "parameter", "words"),
    [
        ({"beam_width": 0}, "beam_width", "at least 1"),
        ({"num_beams": 17}, "num_beams", "at most 16"),
        ({"num_beams": 2, "beam_width": 3}, "num_beams", "the same as beam_width"),
        ({"num_beams": 2, "use_beam_search": False}, "num_beams", "use_beam_search is false"),
        ({"beam_width": 2, "n": 3}, "n", "at most the beam width, which is 2"),
        ({"beam_width": 2, "length_penalty": 11}, "length_penalty", "between -10.0 and 10.0"),
        ({"beam_width": 2, "early_stopping": "soon"}, "early_stopping", 'true, false or "never"'),
        ({"beam_width": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "num_beam_groups", "must divide"),
        ({"beam_width": 4, "num_beam_groups": 2}, "diversity_penalty", "above 0 with several"),
        ({"beam_width": 4, "diversity_penalty": 1.0}, "diversity_penalty", "0 with one"),
        ({"length_penalty": 1.0}, "length_penalty", "no beam search"),
        ({"early_stopping": False, "use_beam_search": False}, "early_stopping", "no beam search"),
        ({"beam_width": 2, "temperature": 0.7}, "temperature", "does not sample"),
        ({"beam_width": 2, "top_k": 5}, "top_k", "does not sample"),
        ({"beam_width": 2, "min_p": 0.1}, "min_p", "does not sample"),
        ({"beam_width": 2, "mirostat": 2}, "mirostat", "does not sample"),
        ({"beam_width": 2, "samplers": ["top_p"]}, "samplers", "does not combine"),
        ({"beam_width": 2, "strategy": "vllm"}, "strategy", "does not combine"),
        ({"beam_width": 2, "guidance_scale": 2.0}, "guidance_scale", "does not combine"),
        ({"beam_width": 2, "speculative": {"method": "ngram"}}, "speculative.method", "ngram"),
        ({"beam_width": 2, "regex": "a+"}, "regex", "does not combine"),
        ({"beam_width": 2, "max_tokens": 0}, "max_tokens", "at least 1"),
        ({"negative_prompt": "x"}, "negative_prompt", "guidance_scale is not"),
        ({"guidance_scale": 20.5}, "guidance_scale", "between -20.0 and 20.0"),
        ({"guidance_scale": 2.0, "negative_prompt": []}, "negative_prompt", "at least one token"),
        ({"guidance_scale": 1.0, "negative_prompt": []}, "negative_prompt", "at least one token"),
        ({"guidance_scale": 1, "negative_prompt": [258]}, "negative_prompt", "vocabulary ends at 257"),
        (
            {"guidance_scale": 2.0, "negative_prompt": [258]},
            "negative_prompt",
            "negative_prompt[0] is 258; the vocab",
        ),
        ({"guidance_scale": 2.0, "negative_prompt": 7}, "negative_prompt", "a string or an array"),
        ({"guidance_scale": 2.0, "negative_prompt": "x" * 10_001}, "negative_prompt", "the limit is 10000"),
        ({"guidance_scale": 2.0, "negative_prompt": "x" * 500, "max_tokens": 20}, "max_tokens", "length is 512"),
        ({"guidance_scale": 2.0, "negative_prompt": "x" * 600}, "negative_prompt", "length is 512"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, object], parameter: str, words: str) -> None:
    engine = FakeEngine()
    async with client_of(make_app(engine)) as client:
        name, message = await refusal(client, **fields)
    assert name == parameter
    assert words in message
    assert not engine.requests


async def test_the_negative_prompt_is_text_or_token_ids() -> None:
    (sequence,) = await asked_for(guidance_scale=1.5, negative_prompt="no")
    assert sequence.guidance == Guidance((110, 111), 1.5)
    (sequence,) = await asked_for(guidance_scale=-2, negative_prompt=[7, 8])
    assert sequence.guidance == Guidance((7, 8), -2.0)


async def test_without_a_negative_prompt_it_is_the_prompts_last_token() -> None:
    sequences = await asked_for(prompt=["ab", "c"], n=2, guidance_scale=3.0)
    assert [one.guidance.negative_prompt for one in sequences if one.guidance] == [(98,), (98,), (99,), (99,)]


async def test_in_a_chat_the_negative_prompt_is_the_users_only_turn() -> None:
    (sequence,) = await asked_for_in_a_chat(guidance_scale=1.5, negative_prompt="no")
    assert sequence.prompt == tuple(b"<user>hi")
    assert sequence.guidance == Guidance(tuple(b"<user>no"), 1.5)


async def test_the_room_for_the_answer_is_that_of_the_longer_prompt() -> None:
    (sequence,) = await asked_for_in_a_chat(guidance_scale=1.5, negative_prompt=[1] * 500)
    assert sequence.params.max_tokens == 12
