"""Which draft model guesses for which served model."""

from pathlib import Path

import pytest

from server.command_line import parse_arguments
from server.draft_sources import assign_drafts, check_default
from server.engine.types import Speculation
from server.errors import CannotStart
from server.model_sources import resolve_models
from server.protocol import ModelSource


def write_checkpoint(folder: Path, tokenizer: str) -> Path:
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (folder / file).touch()
    (folder / "tokenizer.json").write_text(tokenizer)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three models, two of them with one tokenizer, and a draft for these."""
    for name, tokenizer in (("char", "A"), ("other-char", "A"), ("words", "B"), ("char-draft", "A")):
        write_checkpoint(tmp_path / name, tokenizer)
    return tmp_path


def drafts(sources: tuple[ModelSource, ...]) -> dict[str, str | None]:
    return {source.name: source.draft and Path(source.draft).name for source in sources}


def test_a_draft_beside_a_model_is_found_by_its_tokenizer_and_is_no_model_itself(folder: Path) -> None:
    assert drafts(assign_drafts(resolve_models([], folder), [])) == {
        "char": "char-draft",
        "other-char": "char-draft",
        "words": None,
    }


def test_an_incomplete_draft_is_not_found(folder: Path) -> None:
    (folder / "char-draft" / "model.safetensors").unlink()
    assert set(drafts(assign_drafts(resolve_models([], folder), [])).values()) == {None}


def test_off_takes_none(folder: Path) -> None:
    assert set(drafts(assign_drafts(resolve_models([], folder), ["off"])).values()) == {None}


def test_a_named_draft_is_for_that_model_only_and_a_bare_folder_for_all_it_fits(folder: Path) -> None:
    sources = resolve_models([], folder)
    own = write_checkpoint(folder / "small", "A")
    assert drafts(assign_drafts(sources, [f"char={own}"])) == {"char": "small", "other-char": None, "words": None}
    assert drafts(assign_drafts(sources, [str(own)])) == {"char": "small", "other-char": "small", "words": None}
    both = assign_drafts(sources, [f"char={own}", str(folder / "char-draft")])
    assert drafts(both) == {"char": "small", "other-char": "char-draft", "words": None}


def test_a_model_that_is_named_like_a_draft_does_not_draft_for_itself(folder: Path) -> None:
    sources = resolve_models([str(folder / "char-draft")], folder)
    assert drafts(assign_drafts(sources, [])) == {"char-draft": None}


def test_what_fits_nothing_is_refused_in_one_line(folder: Path) -> None:
    sources = resolve_models([], folder)
    stranger = write_checkpoint(folder / "stranger", "C")
    for argument, reason in (
        (f"nobody={stranger}", "no model nobody is served"),
        (str(stranger), "no served model has the same tokenizer.json; use NAME=PATH"),
        (str(folder / "missing"), "there is no such folder"),
    ):
        with pytest.raises(CannotStart) as refusal:
            assign_drafts(sources, [argument])
        assert str(refusal.value) == f"--draft {argument}: {reason}"


def test_a_default_that_needs_a_draft_is_refused_without_one(folder: Path) -> None:
    sources = assign_drafts(resolve_models([], folder), [])
    check_default("auto", sources)
    with pytest.raises(CannotStart, match="--speculative draft: no draft for words; use auto, or --draft"):
        check_default("draft", sources)


def test_the_flags_reach_their_settings() -> None:
    config = parse_arguments(["--draft", "a=/x", "--draft", "/y", "--speculative", "auto", "--speculative-tokens", "6"])
    assert config.speculation.draft == ("a=/x", "/y")
    assert config.api_settings(()).speculation == Speculation("auto", 6)
    with pytest.raises(CannotStart, match="--speculative-tokens 9: must be from 1 to 8"):
        parse_arguments(["--speculative-tokens", "9"])
