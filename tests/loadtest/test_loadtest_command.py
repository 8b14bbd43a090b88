"""The whole command: refusals, exit codes, files."""

import json
from pathlib import Path

import pytest
from fake_openai import Behaviour, FakeOpenAI

from loadtest.__main__ import main

QUICK = ["--num-requests", "8", "--warmup-requests", "2", "--output-length", "fixed:3", "--prompt-length", "fixed:4"]


def results(path: Path):
    return json.loads(path.read_text())


def test_a_run_prints_a_table_and_writes_results_that_balance(fake: FakeOpenAI, tmp_path, capsys):
    fake.behave = lambda number, body: Behaviour(status=503 if number == 4 else 200)
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    options = ["--json", str(out), "--plot", str(plot), "--per-request", "--goodput", "ttft:9000", "itl:9000"]
    hidden = ["--api-key", "very-secret"]
    assert main(["--url", fake.url, "--concurrency", "2", *QUICK, *options, *hidden]) == 1
    shown = capsys.readouterr().out
    assert "TTFT" in shown
    assert "http_503 x 1" in shown
    assert "goodput" in shown
    run = results(out)["runs"][0]
    totals = run["summary"]["totals"]
    assert totals["sent"] == 8 == totals["ok"] + totals["errors"] + totals["disconnected"]
    assert totals["errors_by_kind"] == {"http_503": 1}
    assert run["summary"]["goodput"]["share"] == 7 / 8
    assert run["summary"]["tokens"]["output"] == 7 * 3
    assert len(run["requests"]) == 8
    assert run["model"] == "tiny"
    assert "very-secret" not in out.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_errors_can_be_allowed_and_disconnections_are_not_errors(fake: FakeOpenAI, tmp_path):
    out = tmp_path / "out.json"
    leaving = ["--disconnect-fraction", "1", "--url", fake.url, "--concurrency", "2", "--json", str(out)]
    fake.behave = lambda number, body: Behaviour(ending="hang" if number >= 2 else "whole")
    assert main([*leaving, *QUICK]) == 0
    assert results(out)["runs"][0]["summary"]["totals"]["disconnected"] == 8
    fake.behave = lambda number, body: Behaviour(status=500)
    assert main(["--url", fake.url, "--allow-errors", *QUICK]) == 0


def test_errors_of_the_warm_up_are_not_counted_but_not_forgotten(fake: FakeOpenAI, tmp_path):
    fake.behave = lambda number, body: Behaviour(status=500 if number == 0 else 200)
    out = tmp_path / "out.json"
    assert main(["--url", fake.url, "--json", str(out), *QUICK]) == 1
    run = results(out)["runs"][0]
    assert run["summary"]["totals"]["ok"] == 8
    assert run["warmup_errors"] == {"http_500": 1}
    assert len(fake.bodies) == 10


@pytest.mark.parametrize(
    "load", [["--concurrency", "1", "2"], ["--rate", "400", "800"], ["--concurrency", "2", "--sweep"]]
)
def test_a_sweep_makes_one_run_a_load_and_a_plot(fake: FakeOpenAI, tmp_path, capsys, load):
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    assert main(["--url", fake.url, *load, *QUICK, "--json", str(out), "--plot", str(plot)]) == 0
    assert len(results(out)["runs"]) == 2
    assert "latency against load" in capsys.readouterr().out
    assert plot.stat().st_size > 10_000
    prompts = [body["prompt"] for body in fake.bodies]
    assert len(set(prompts)) == len(prompts)


def test_a_duration_ends_a_run(fake: FakeOpenAI, tmp_path):
    out = tmp_path / "out.json"
    quick = ["--warmup-requests", "0", "--output-length", "fixed:2", "--duration-seconds", "0.1"]
    assert main(["--url", fake.url, "--rate", "200", *quick, "--json", str(out)]) == 0
    assert 5 < results(out)["runs"][0]["summary"]["totals"]["sent"] < 50
    assert main(["--url", fake.url, "--concurrency", "1", *quick, "--json", str(out)]) == 0
    assert results(out)["runs"][0]["summary"]["duration_seconds"] < 1


def test_connections_are_kept_unless_every_request_is_to_have_its_own(fake: FakeOpenAI):
    assert main(["--url", fake.url, "--concurrency", "1", *QUICK]) == 0
    assert len(fake.ports) == 10
    assert len(set(fake.ports)) == 1
    assert main(["--url", fake.url, "--concurrency", "1", "--fresh-connections", *QUICK]) == 0
    assert len(set(fake.ports[10:])) == 10


def test_two_servers_get_the_same_work_in_turn(fake: FakeOpenAI, tmp_path, capsys):
    other = FakeOpenAI()
    other.start()
    other.behave = lambda number, body: Behaviour(delay_seconds=0.004)
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    files = ["--json", str(out), "--plot", str(plot)]
    try:
        versus = ["--versus", other.url, "--versus-model", "renamed", "--rounds", "2"]
        assert main(["--url", fake.url, "--concurrency", "2", *versus, *QUICK, *files]) == 0
    finally:
        other.stop()
    content = results(out)
    assert [run["server"] for run in content["runs"]] == ["A", "B", "B", "A"]
    ratios = {item["metric"]: item for item in content["versus"]}
    assert len(ratios["e2e_p50"]["ratios"]) == 2
    assert ratios["e2e_p50"]["median"] < 1 < ratios["output_tokens_per_second"]["median"]
    assert "A / B" in capsys.readouterr().out
    assert {body["model"] for body in other.bodies} == {"renamed"}
    sent = [sorted((body["prompt"], body["seed"]) for body in server.bodies) for server in (fake, other)]
    assert sent[0] == sent[1]


def test_the_first_server_s_key_stays_with_it(fake: FakeOpenAI):
    other = FakeOpenAI()
    other.start()
    try:
        keys = ["--api-key", "first", "--versus-api-key", "second", "--versus", other.url, "--rounds", "1"]
        assert main(["--url", fake.url, *keys, *QUICK]) == 0
    finally:
        other.stop()
    assert {headers["Authorization"] for headers in fake.headers} == {"Bearer first"}
    assert {headers["Authorization"] for headers in other.headers} == {"Bearer second"}


@pytest.mark.parametrize("load", [["--concurrency", "1", "2"], ["--rate", "0.01", "--duration-seconds", "0.01"]])
def test_runs_in_which_nothing_was_answered_are_reported_too(fake: FakeOpenAI, tmp_path, load):
    fake.behave = lambda number, body: Behaviour(status=500)
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    assert main(["--url", fake.url, *load, *QUICK, "--json", str(out), "--plot", str(plot)]) == 1
    assert all(run["summary"]["ttft_ms"] is None for run in results(out)["runs"])
    assert plot.exists()


def test_prompts_come_from_a_file(fake: FakeOpenAI, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("first\n\nsecond\n")
    assert main(["--url", fake.url, "--prompts", str(prompts), *QUICK]) == 0
    assert {body["prompt"] for body in fake.bodies} == {"first", "second"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--num-requests 0", "--num-requests 0: must be from 1 to"),
        ("--num-requests many", "many"),
        ("--concurrency 4 0", "--concurrency 0: must be from 1 to 10000"),
        ("--concurrency 4 --rate 2", "--rate (2.0,): not together with --concurrency"),
        ("--rate nan", "--rate nan: must be above 0"),
        ("--rate 100000 --duration-seconds 80000", "--rate 100000.0: times --duration-seconds must be at most"),
        ("--url ftp://x", "--url ftp://x: must start with http"),
        ("--url http://", "--url http://: must name a host"),
        ("--url http://x:70000", "--url http://x:70000: is no address: Port out of range"),
        ("--url http://[::1", "--url http://[::1: is no address: Invalid IPv6 URL"),
        ("--versus http://me:secret@x", "--versus http://me:secret@x: must not hold a user's name"),
        ("--prompt-length uniform:9:3", "--prompt-length uniform:9:3: HIGH must be from LOW"),
        ("--goodput ttft:fast", "--goodput ttft:fast: must be NAME:MILLISECONDS"),
        ("--goodput ttfb:5", "NAME one of ttft, itl, tpot, e2e"),
        ("--extra-body [1]", "--extra-body [1]: must be a JSON object"),
        ("--prompt-token-ids", "--vocab-size None: must be given"),
        ("--prompt-token-ids --vocab-size 9 --endpoint chat", "--endpoint chat: takes no token ids"),
        ("--endpoint chats", "chats"),
        ("--disconnect-fraction 1.5", "--disconnect-fraction 1.5: must be from 0 to 1"),
        ("--json /nowhere/at/all.json", "--json /nowhere/at/all.json: its folder must exist"),
        ("--json /", "it must not be one"),
        ("--plot plot.pdf", "--plot plot.pdf: must end in .png"),
        ("--per-request", "--per-request True: needs --json"),
        ("--prompts /nowhere/at/all.txt", "--prompts /nowhere/at/all.txt: cannot be read"),
        ("--versus b --rounds 2", "--versus b: must start with"),
        ("--url http://127.0.0.1:8000 --api-key kéy", "--api-key (not shown): must be printable ASCII"),
        ("--rounds 0", "--rounds 0: must be from 1 to 100"),
        ("--frobnicate 3", "--frobnicate"),
    ],
)
def test_a_bad_setting_is_refused_on_one_line(arguments, expected, capsys):
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("minigpt-loadtest: ")
    assert expected in captured.err


def test_a_server_that_is_not_there_is_told_on_one_line(capsys):
    assert main(["--url", "http://127.0.0.1:9"]) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("minigpt-loadtest: cannot begin: connect: Cannot connect to host 127.0.0.1:9 [")
    assert "ssl" not in captured
    assert captured.count("\n") == 1


UNCOUNTED = ["--num-requests", "8", "--warmup-requests", "0"]


@pytest.mark.parametrize("model", [[], ["--model", "tiny"]])
@pytest.mark.parametrize("context_length", [64, 256, 300])
@pytest.mark.parametrize("shared", [[], ["--shared-prefix", "2"]])
def test_default_lengths_fit_the_context_that_a_server_tells(fake: FakeOpenAI, capsys, model, context_length, shared):
    fake.context_length = context_length
    fake.behave = lambda number, body: Behaviour(  # as a model of single characters would
        status=400 if len(body["prompt"]) + body["max_tokens"] > context_length else 200
    )
    assert main(["--url", fake.url, *model, *UNCOUNTED, *shared]) == 0
    assert "note: the default lengths do not fit" in capsys.readouterr().out
    assert len(fake.bodies) == 8


@pytest.mark.parametrize("context_length", [None, 100_000])
def test_default_lengths_are_whole_where_the_context_is_long_or_unknown(fake: FakeOpenAI, capsys, context_length):
    fake.context_length = context_length
    assert main(["--url", fake.url, *UNCOUNTED]) == 0
    assert "do not fit" not in capsys.readouterr().out
    assert {(len(body["prompt"].split()), body["max_tokens"]) for body in fake.bodies} == {(48, 64)}


def test_lengths_that_were_asked_for_stay_whether_they_fit_or_not(fake: FakeOpenAI, tmp_path, capsys):
    fake.context_length = 256
    out = tmp_path / "out.json"
    lengths = ["--prompt-length", "fixed:90", "--output-length", "fixed:400"]
    assert main(["--url", fake.url, *UNCOUNTED, *lengths, "--json", str(out)]) == 0
    assert "do not fit" not in capsys.readouterr().out
    assert {(len(body["prompt"].split()), body["max_tokens"]) for body in fake.bodies} == {(90, 400)}
    assert main(["--url", fake.url, *UNCOUNTED, "--output-length", "fixed:20", "--json", str(out)]) == 0
    requests = results(out)["config"]["requests"]
    assert (requests["prompt_length"], requests["output_length"]) == ("fixed:25", "fixed:20")


def test_of_two_servers_the_shorter_context_decides(fake: FakeOpenAI):
    other = FakeOpenAI()
    other.context_length = 128
    other.start()
    fake.context_length = 4096
    try:
        assert main(["--url", fake.url, "--versus", other.url, "--rounds", "1", *UNCOUNTED]) == 0
    finally:
        other.stop()
    assert {body["max_tokens"] for body in fake.bodies} == {128 // 4}


def test_help_teaches_with_examples(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert "minigpt-loadtest --rate 20" in shown
    assert "--disconnect-fraction" in shown
