"""How much text one token can stand for, so that a text too long for a context is known before it is tokenized.

Knows the stages of tokenizer.json and imports no torch.
"""

from collections.abc import Mapping

import tokenizers

from model.token_bytes import byte_alphabet

_KEEPING_SPLITTERS = frozenset({"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts"})
_BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def max_token_bytes(library: tokenizers.Tokenizer, description: Mapping[str, object]) -> int | None:
    """The most bytes of UTF-8 text that one token can cover: n bytes of text are at least n / that many tokens.

    None when the vocabulary sets no bound: some stage shortens the text (a normalizer that composes characters, a
    splitter that drops spaces), or one token may stand for any number of unknown characters. `description` is
    tokenizer.json, parsed. Stages not known here count as shortening.
    """
    if not _keeps_text(description) or not _knows_every_byte(library, description):
        return None
    longest = max(len(piece.encode()) for piece in library.get_vocab(with_added_tokens=True))
    if library.normalizer is not None:  # some added tokens are looked for in the normalized text, in that form
        added = library.get_added_tokens_decoder().values()
        written = [library.normalizer.normalize_str(token.content) for token in added]
        longest = max(longest, *(len(text.encode()) for text in written), 1)
    return longest


def _keeps_text(description: Mapping[str, object]) -> bool:
    """Whether every byte of the text, or more, reaches the vocabulary."""
    added = description.get("added_tokens")
    assert isinstance(added, list), "the tokenizer library has already read these tokens"
    return (
        all(_grows(step) for step in _steps(description.get("normalizer"), "normalizers"))
        and all(_keeps_pieces(step) for step in _steps(description.get("pre_tokenizer"), "pretokenizers"))
        and not any(token["lstrip"] or token["rstrip"] for token in added)  # they swallow the spaces beside them
    )


def _grows(normalizer: Mapping[str, object]) -> bool:
    match normalizer:
        case {"type": "ByteLevel" | "Prepend"}:
            return True
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return len(new.encode()) >= len(old.encode())
    return False


def _keeps_pieces(splitter: Mapping[str, object]) -> bool:
    return splitter.get("type") in _KEEPING_SPLITTERS and splitter.get("behavior") != "Removed"


def _knows_every_byte(library: tokenizers.Tokenizer, description: Mapping[str, object]) -> bool:
    """Whether what the vocabulary lacks is spelled in bytes, instead of being dropped or fused into one token."""
    model = description["model"]
    assert isinstance(model, dict), "the tokenizer library has already read this model"
    vocabulary = library.get_vocab(with_added_tokens=False)
    if model.get("byte_fallback"):
        spelled = all(piece in vocabulary for piece in _BYTE_PIECES)
    else:
        stages = [
            *_steps(description.get("normalizer"), "normalizers"),
            *_steps(description.get("pre_tokenizer"), "pretokenizers"),
        ]
        is_byte_level = any(stage.get("type") == "ByteLevel" for stage in stages)
        spelled = is_byte_level and all(character in vocabulary for character in byte_alphabet())
    has_affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    return spelled and not has_affixes and model.get("type") in ("BPE", "Unigram")


def _steps(stage: object, nested: str) -> list[Mapping[str, object]]:
    """A stage's steps in order, sequences opened up."""
    if not isinstance(stage, dict):
        return []
    if stage.get("type") != "Sequence":
        return [stage]
    return [step for inner in stage[nested] for step in _steps(inner, nested)]
