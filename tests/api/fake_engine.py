"""A tokenizer of bytes and an engine that recites scripts: enough to test the HTTP edge without a model."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from server.engine.inspection import Inspection
from server.engine.types import EngineInfo, SequenceOutput, SequenceRequest, TokenLogprob
from server.errors import EngineFailed, EngineUnavailable, ServerError
from server.generation import Tap
from server.origins import Origin

EOS = 256
BOS = 257
VOCAB_SIZE = 258
EMPTY = Inspection(64, 64, 0, 0, 0, (), 0, (), 0, ())

Script = Sequence[SequenceOutput]  # one entry per step; ids are filled in
Reply = Callable[[SequenceRequest], Script]


class ByteTokenizer:
    """Token i is byte i; two special tokens follow."""

    vocab_size = VOCAB_SIZE
    eos_token_ids = (EOS,)
    bos_token_id = BOS
    special_ids = frozenset({EOS, BOS})
    chat_template = None
    max_token_bytes = 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        return bytes([id]) if id < 256 else b""


def info(context_length: int = 512) -> EngineInfo:
    return EngineInfo(
        vocab_size=VOCAB_SIZE,
        context_length=context_length,
        eos_token_ids=(EOS,),
        num_parameters=1_000,
        dtype="float32",
        device="cpu",
        num_blocks=64,
    )


def logprob_of(token: int, num_top: int) -> TokenLogprob:
    """A fixed distribution, the same at every position: token t has -(t + 1) / 100, so token 0 is the likeliest."""
    top = tuple(range(num_top))
    return TokenLogprob(token, -(token + 1) / 100, token + 1, top, tuple(-(other + 1) / 100 for other in top))


def recite(text: bytes, group: int = 1, then: int | None = EOS) -> Reply:
    """Say `text` byte by byte, `group` tokens a step, then the stop token `then`, unless max_tokens comes first."""

    def reply(request: SequenceRequest) -> Script:
        params = request.params
        tokens = [*text] if then is None or params.ignore_eos else [*text, then]
        tokens = tokens[: params.max_tokens]
        ends = bool(tokens) and tokens[-1] == then and not params.ignore_eos
        steps = [SequenceOutput(0, tuple(tokens[start : start + group])) for start in range(0, len(tokens), group)] or [
            SequenceOutput(0)
        ]
        if params.logprobs is not None:
            count = params.logprobs
            steps = [replace(s, logprobs=tuple(logprob_of(token, count) for token in s.tokens)) for s in steps]
        if params.prompt_logprobs is not None:
            entries = tuple(logprob_of(token, params.prompt_logprobs) for token in request.prompt[1:])
            half = len(entries) // 2  # as a prompt cut into two chunks would give them
            steps = [SequenceOutput(0, prompt_logprobs=entries[:half]), *steps]
            steps[1] = replace(steps[1], prompt_logprobs=entries[half:])
        steps[-1] = replace(steps[-1], finish_reason="stop" if ends else "length", stop_token=then if ends else None)
        return steps

    return reply


class FakeGeneration:
    """Gives every unfinished sequence one output of its script per step, in lockstep."""

    def __init__(self, scripts: Sequence[Script], engine: "FakeEngine") -> None:
        self._scripts = [list(script) for script in scripts]
        self._engine = engine
        self._num_steps = 0
        self._taps: dict[int, Tap] = {}
        self.stopped: set[int] = set()
        self.num_closes = 0
        self.closed = asyncio.Event()

    def __aiter__(self) -> "FakeGeneration":
        return self

    async def __anext__(self) -> Sequence[tuple[int, SequenceOutput]]:
        if self._num_steps == self._engine.fails_after:
            raise EngineFailed("the engine died")
        if self._num_steps >= self._engine.holds_after:
            await self._engine.released.wait()
        self._num_steps += 1
        outputs = []
        for _ in range(self._engine.steps_at_once):
            for index, script in enumerate(self._scripts):
                if script and index not in self.stopped:
                    outputs.append((index, script.pop(0)))
        if not outputs:
            raise StopAsyncIteration
        return [each for each in outputs if not self._is_tapped(*each)] or await anext(self)

    def _is_tapped(self, index: int, output: SequenceOutput) -> bool:
        is_plain = output == SequenceOutput(output.id, output.tokens) and len(output.tokens) == 1
        return is_plain and index in self._taps and self._taps[index](output.tokens) == 1

    def tap(self, index: int, take: Tap | None) -> None:
        """For the outputs of the reader's next wait on, each alone."""
        self._taps.pop(index, None)
        if take is not None:
            self._taps[index] = take

    def stop(self, index: int) -> None:
        self.stopped.add(index)

    def close(self) -> None:
        self.num_closes += 1
        self.closed.set()


@dataclass
class FakeEngine:
    """Says what `reply` says. It can hold its breath after a number of steps until `released`, die, or refuse."""

    reply: Reply = field(default_factory=lambda: recite(b"Hello, world"))
    known: dict[str, EngineInfo] = field(default_factory=lambda: {"tiny": info()})
    ready: bool = True
    refusal: ServerError | None = None
    fails_after: int | None = None
    holds_after: int = 10**9
    steps_at_once: int = 1
    released: asyncio.Event = field(default_factory=asyncio.Event)
    opened: list[FakeGeneration] = field(default_factory=list)
    requests: list[list[SequenceRequest]] = field(default_factory=list)
    checked: list[tuple[str, int]] = field(default_factory=list)
    inspection: Inspection = EMPTY
    inspected: list[tuple[str, str, int]] = field(default_factory=list)
    origins: dict[int, Origin] = field(default_factory=dict)

    def models(self) -> Mapping[str, EngineInfo]:
        return self.known

    def is_ready(self) -> bool:
        return self.ready

    def check_admission(self, model: str, num_sequences: int) -> None:
        self.checked.append((model, num_sequences))
        if self.refusal is not None:
            raise self.refusal
        if model not in self.known:
            raise EngineUnavailable("the engine is still loading")

    def open(self, model: str, sequences: Sequence[SequenceRequest], answer_id: str = "") -> FakeGeneration:
        assert model in self.known
        assert [sequence.id for sequence in sequences] == list(range(len(sequences)))
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(list(sequences))
        self.opened.append(FakeGeneration([self.reply(sequence) for sequence in sequences], self))
        return self.opened[-1]

    async def inspect(self, model: str, salt_prefix: str, limit: int) -> Inspection:
        self.inspected.append((model, salt_prefix, limit))
        if self.refusal is not None:
            raise self.refusal
        return self.inspection

    def find_origin(self, id_: int) -> Origin | None:
        return self.origins.get(id_)
