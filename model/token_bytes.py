"""The raw bytes every token of a vocabulary stands for. Knows the decoders of tokenizer.json, imports no torch.

Text is the bytes of its tokens joined, so a decoder that looks at neighbouring tokens cannot be represented and is
refused. The one exception is trimming the space that SentencePiece puts before a text: a continuation keeps it.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from model.files import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Byte values that byte-level vocabularies write as themselves: the printable part of Latin-1.
_PRINTABLE = (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))

# (vocabulary entry, whether it was added to the vocabulary as plain text) -> bytes
PieceBytes = Callable[[str, bool], bytes]


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary (Radford et al. 2019), to that byte."""
    printable = {byte for span in _PRINTABLE for byte in span}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def piece_reader(decoder: Mapping[str, object] | None) -> PieceBytes:
    """How to read a vocabulary entry, from tokenizer.json's decoder. Raises CheckpointError naming an unfit decoder."""
    steps = list(_steps(decoder))
    if any(step.get("type") == "ByteLevel" for step in steps):
        return _byte_level_reader()
    replacements: list[tuple[str, str]] = []
    byte_fallback = False
    for step in steps:
        match step:
            case {"type": "ByteFallback"}:
                byte_fallback = True
            case {"type": "Metaspace", "replacement": str(old)}:
                replacements.append((old, " "))
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replacements.append((old, new))
            case {"type": "Fuse" | "Strip"}:
                pass
            case _:
                raise CheckpointError(
                    f"tokenizer.json: decoder {step.get('type')} is not supported: it looks beyond a single token"
                )
    return _text_reader(replacements, byte_fallback)


def _byte_level_reader() -> PieceBytes:
    alphabet = byte_alphabet()

    def read(piece: str, added: bool) -> bytes:
        if not added and all(character in alphabet for character in piece):
            return bytes(alphabet[character] for character in piece)
        return piece.encode()

    return read


def _text_reader(replacements: list[tuple[str, str]], byte_fallback: bool) -> PieceBytes:
    def read(piece: str, added: bool) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(piece) if byte_fallback and not added else None
        if byte is not None:
            return bytes([int(byte[1], 16)])
        for old, new in replacements:
            piece = piece.replace(old, new)
        return piece.encode()

    return read


def _steps(decoder: Mapping[str, object] | None) -> Iterable[Mapping[str, object]]:
    """The decoder's steps in order, sequences opened up."""
    if decoder is None:
        return
    if decoder.get("type") != "Sequence":
        yield decoder
        return
    nested = decoder.get("decoders")
    assert isinstance(nested, list), "the tokenizer library has already read this decoder"
    for step in nested:
        yield from _steps(step)
