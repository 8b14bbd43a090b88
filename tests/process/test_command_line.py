"""The command line: what it teaches, what it refuses in one line, and which models it finds."""

import io
import logging
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from server import generate
from server.__main__ import main
from server.command_line import parse_arguments
from server.config import ServerConfig
from server.engine.config import EngineConfig
from server.errors import CannotStart
from server.logs import Event, JsonFormatter, TextFormatter
from server.model_sources import resolve_models
from server.protocol import ModelSource

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = REPOSITORY / "checkpoints" / "shakespeare-char"


def write_checkpoint(folder: Path, *, without: str = "") -> Path:
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        if file != without:
            (folder / file).touch()
    return folder


def test_without_arguments_every_setting_has_its_default() -> None:
    assert parse_arguments([]) == ServerConfig()
    assert ServerConfig().http.host == "127.0.0.1"


def test_every_flag_reaches_its_setting() -> None:
    flags = "--model a=/x --model /y --host ::1 --port 0 --api-key k1 --api-key k2 --max-queue 9 --drain-seconds 1.5"
    engine = "--device cpu --dtype bfloat16 --num-blocks 77 --max-running 5 --max-step-tokens 50 --threads 1"
    engine += " --backend native --quantize int8 --kv-cache int8"
    config = parse_arguments(f"{flags} {engine} --log-level debug --log-format json --access-log".split())
    assert config.models.model == ("a=/x", "/y")
    assert config.engine == EngineConfig(
        "cpu",
        "bfloat16",
        "native",
        num_blocks=77,
        max_running=5,
        max_step_tokens=50,
        threads=1,
        quantize="int8",
        kv_cache="int8",
    )
    assert (config.http.api_key, config.http.max_queue, config.http.drain_seconds) == (("k1", "k2"), 9, 1.5)
    assert (config.log.log_level, config.log.log_format, config.log.access_log) == ("debug", "json", True)
    assert config.queue_limits().max_open == 9 + 5
    assert config.api_settings(("k",)).api_keys == ("k",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--port 70000", "--port 70000: must be from 0 to 65535"),
        ("--port eighty", "--port.*eighty"),
        ("--drain-seconds nan", "--drain-seconds nan: must be from 0 to 3600"),
        ("--drain-seconds -1", "--drain-seconds.*must be from 0 to 3600|--drain-seconds"),
        ("--max-queue 0", "--max-queue 0: must be from 1 to 65536"),
        ("--max-body-bytes 0", "--max-body-bytes 0: must be from 1"),
        ("--max-running 0", "--max-running 0: must be between 1 and 4096"),
        ("--max-step-tokens 8", r"--max-step-tokens 8: must be at least max_running \(64\)"),
        ("--num-blocks 0", "--num-blocks 0: must be between 1 and 16777216"),
        ("--device tpu", "--device.*'auto', 'cpu', 'cuda'"),
        ("--colour red", "--colour"),
        ("--model", "--model"),
        ("--host=", "--host '': must be an address"),
        ("--api-key=", r"--api-key \(hidden\): must be printable ASCII"),
        ("--model /nowhere/at/all", "--model /nowhere/at/all: there is no such folder"),
        ("--host 192.0.2.1 --model {checkpoint}", "--host 192.0.2.1: is not an address of this machine"),
    ],
)
def test_bad_input_is_one_line_with_field_value_and_limit_and_exit_code_2(
    arguments: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "ok")
    handlers = logging.getLogger().handlers[:]
    try:
        assert main(arguments.format(checkpoint=checkpoint).split()) == 2
    finally:
        logging.getLogger().handlers[:] = handlers
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(rf"minigpt-serve: .*({message}).*\n", err), err


def test_a_secret_is_not_repeated_when_it_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--api-key", " sesame"]) == 2
    assert "sesame" not in capfd.readouterr().err


def test_help_explains_every_flag_and_shows_examples() -> None:
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as stopped:
        parse_arguments(["--help"])
    assert stopped.value.code == 0
    text = out.getvalue()
    # A flag, and something said about it beside or below.
    flags = re.findall(r"^ +(--[a-z-]+)[^\n]*?(?:  +|\n {20,})(?!\(default)(\w.*)", text, re.MULTILINE)
    explained = {flag for flag, _ in flags}
    settings = [setting for group in vars(ServerConfig()).values() for setting in vars(group)]
    unexplained = {f"--{setting.replace('_', '-')}" for setting in settings} - explained
    assert unexplained <= {"--device", "--dtype"}, unexplained  # their choices say it
    assert "minigpt-serve --model chars=" in text
    assert "MINIGPT_API_KEY" in text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_refusals_are_one_line_on_every_terminal(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", "--port", "eighty"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.fullmatch(r"minigpt-serve: Error parsing --port: [^\n]*'eighty'\n", done.stderr)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("x hi --max-tokens many", "--max-tokens.*'many'"),
        ("x hi --colour red", "--colour"),
        ("", "[Rr]equired"),
        ("x hi --max-running 0", "--max-running 0: must be between 1 and 4096"),
        ("x hi --stop=", "--stop '': must hold at least 1 character"),
        ("/nowhere/at/all hi", "/nowhere/at/all: there is no such folder"),
        ("x hi --speculative draft", "--speculative draft: must come with --draft"),
        (f"{SHIPPED} hi --draft /nowhere/at/all", "/nowhere/at/all: there is no such folder"),
        ("/nowhere/at/all hi --max-tokens -1", "--max-tokens -1: must be at least 0"),
    ],
)
def test_generate_refuses_in_one_line_too(arguments: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert generate.main(arguments.split()) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(rf"minigpt-generate: .*({message}).*\n", err), err


def test_generate_explains_its_flags_and_shows_examples(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        generate.main(["--help"])
    assert stopped.value.code == 0
    out, _ = capfd.readouterr()
    assert "--temperature" in out
    assert 'minigpt-generate checkpoints/shakespeare-char "ROMEO:"' in out
    assert "Raises" not in out


def generated(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert generate.main([str(SHIPPED), "--seed", "1", *arguments]) == 0
    return capfd.readouterr().out


def test_generate_ends_quietly_when_nobody_reads_on() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "server.generate", str(SHIPPED), "ROMEO:", "--seed", "1", "--backend", "torch"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=REPOSITORY, timeout=60, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_generate_takes_an_empty_prompt_as_the_beginning_of_a_document(capfd: pytest.CaptureFixture[str]) -> None:
    written_out = generated(capfd, "<|endoftext|>", "--max-tokens", "12")
    assert generated(capfd, "", "--max-tokens", "12") == written_out.removeprefix("<|endoftext|>")


def test_generate_writes_the_same_with_and_without_guessing_ahead(capfd: pytest.CaptureFixture[str]) -> None:
    plain = generated(capfd, "ROMEO:", "--max-tokens", "24")
    assert generated(capfd, "ROMEO:", "--max-tokens", "24", "--draft", f"{SHIPPED.parent}/shakespeare-draft") == plain
    assert generated(capfd, "ROMEO:", "--max-tokens", "24", "--speculative", "ngram") == plain


def test_generate_refuses_more_tokens_than_the_context_holds_and_by_default_fills_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    prompt = "a" * 250  # one token each, of the context's 256
    assert generate.main([str(SHIPPED), prompt, "--max-tokens", "7"]) == 2
    message = "prompt has 250 tokens and max_tokens is 7, together 257; the model's context length is 256 tokens."
    assert capfd.readouterr() == ("", f"minigpt-generate: {message}\n")
    default = generated(capfd, prompt)
    assert default == generated(capfd, prompt, "--max-tokens", "6")
    assert len(default) > len(prompt) + 1


def test_models_are_named_after_their_folder_or_as_asked(tmp_path: Path) -> None:
    first, second = write_checkpoint(tmp_path / "one"), write_checkpoint(tmp_path / "two")
    sources = resolve_models([str(first), f"other={second}"], tmp_path)
    assert sources == (ModelSource("one", str(first)), ModelSource("other", str(second)))


def test_a_folder_with_an_equals_sign_in_its_name_is_still_a_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a=b")
    with pytest.raises(CannotStart, match="the name must match"):
        resolve_models([str(folder)], tmp_path)
    assert resolve_models([f"ab={folder}"], tmp_path) == (ModelSource("ab", str(folder)),)


def test_the_folder_of_a_training_run_is_refused_with_where_its_checkpoint_is(tmp_path: Path) -> None:
    run = write_checkpoint(tmp_path / "run" / "checkpoint", without="tokenizer.json").parent
    with pytest.raises(CannotStart, match=r"has no config\.json .*no tokenizer\.json$"):
        resolve_models([f"a={run}"], tmp_path)
    (run / "checkpoint" / "tokenizer.json").touch()
    with pytest.raises(CannotStart, match=rf"has no config\.json .*; there is a checkpoint in {run}/checkpoint$"):
        resolve_models([f"a={run}"], tmp_path)


def test_sharded_weights_are_weights(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "big", without="model.safetensors")
    (folder / "model.safetensors.index.json").touch()
    assert resolve_models([str(folder)], tmp_path) == (ModelSource("big", str(folder)),)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused_when_named_and_skipped_when_found(tmp_path: Path, file: str) -> None:
    incomplete = write_checkpoint(tmp_path / "a-incomplete", without=file)
    with pytest.raises(CannotStart, match=f"has no {file}"):
        resolve_models([str(incomplete)], tmp_path)
    write_checkpoint(tmp_path / "complete")
    assert [source.name for source in resolve_models([], tmp_path)] == ["complete"]


def test_without_models_every_checkpoint_is_served_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_checkpoint(tmp_path / name)
    assert [source.name for source in resolve_models([], tmp_path)] == ["a", "b", "c"]


def test_no_model_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="there is no checkpoint in"):
        resolve_models([], tmp_path / "nothing")


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = write_checkpoint(tmp_path / "x" / "m"), write_checkpoint(tmp_path / "y" / "m")
    with pytest.raises(CannotStart, match="the name m is given twice"):
        resolve_models([str(first), str(second)], tmp_path)


def test_an_event_is_one_line_that_splits_back_into_its_fields() -> None:
    event = Event("thing_happened", count=3, reason='he said "no"\nand left', seconds=0.123456789, empty="")
    text = TextFormatter().format(logging.makeLogRecord({"msg": event, "levelname": "INFO", "name": "server.x"}))
    assert text.endswith(
        r'Z INFO server.x thing_happened count=3 reason="he said \"no\"\nand left" seconds=0.123457 empty=""'
    )


def test_a_traceback_stays_inside_its_json_line() -> None:
    try:
        raise ValueError("no\nyes")
    except ValueError:
        record = logging.makeLogRecord({"msg": "plain %s", "args": ("words",), "exc_info": sys.exc_info()})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert '"message": "plain words"' in line
    assert "Traceback" in line


def test_the_http_process_never_imports_torch() -> None:
    code = "import sys, server.__main__, server.composition; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
