"""A real engine core under the HTTP edge, in the same process: steps are taken when somebody waits for them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

import torch
from fake_engine import EMPTY, EOS, VOCAB_SIZE

from model.config import ModelConfig
from model.gpt import GPT, initialise
from server.engine.block_pool import BlockPool
from server.engine.core import EngineCore
from server.engine.inspection import Inspection
from server.engine.scheduler import Scheduler
from server.engine.selfcheck import make_exact
from server.engine.torch_runner import TorchRunner
from server.engine.types import EngineInfo, SequenceOutput, SequenceRequest, StepStats
from server.generation import Tap
from server.origins import Origin

NUM_BLOCKS = 400
CONFIG = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    context_length=256,
    tie_embeddings=False,
)


def tiny_core() -> EngineCore:
    """A random model over bytes whose logits differ enough that texts do."""
    model = GPT(CONFIG)
    initialise(model, torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8.0)
    model = model.eval().requires_grad_(False)
    make_exact(model, 512, allow_inexact=False)
    clock = count().__next__
    info = EngineInfo(VOCAB_SIZE, CONFIG.context_length, (EOS,), 0, "float32", "cpu", NUM_BLOCKS)
    return EngineCore(info, TorchRunner(model, NUM_BLOCKS, clock), Scheduler(BlockPool(NUM_BLOCKS), 64, 512), clock)


class CoreGeneration:
    """The outputs of one request's sequences."""

    def __init__(self, engine: "CoreEngine", ids: Mapping[int, int]) -> None:
        self._engine = engine
        self._index_of = dict(ids)
        self._outputs: list[tuple[int, SequenceOutput]] = []

    def __aiter__(self) -> "CoreGeneration":
        return self

    async def __anext__(self) -> Sequence[tuple[int, SequenceOutput]]:
        while not self._outputs:
            if not self._index_of:
                raise StopAsyncIteration
            self._engine.step()
        outputs, self._outputs = self._outputs, []
        return outputs

    def deliver(self, output: SequenceOutput) -> None:
        """Take what one step gave, if it is for a sequence of this request."""
        if output.id not in self._index_of:
            return
        self._outputs.append((self._index_of[output.id], output))
        if output.finish_reason is not None:
            del self._index_of[output.id]

    def tap(self, index: int, take: Tap | None) -> None:
        """Offers it nothing."""

    def stop(self, index: int) -> None:
        self._abort([id_ for id_, own in self._index_of.items() if own == index])

    def close(self) -> None:
        self._abort(list(self._index_of))

    def _abort(self, ids: Sequence[int]) -> None:
        for id_ in ids:
            del self._index_of[id_]
        self._engine.core.abort(ids)


class CoreEngine:
    """One model, "tiny", and all that its steps said of themselves."""

    def __init__(self) -> None:
        self.core = tiny_core()
        self.stats: list[StepStats] = []
        self._ids = count()
        self._open: list[CoreGeneration] = []

    def models(self) -> Mapping[str, EngineInfo]:
        return {"tiny": self.core.info}

    def is_ready(self) -> bool:
        return True

    def check_admission(self, model: str, num_sequences: int) -> None:
        pass

    def open(self, model: str, sequences: Sequence[SequenceRequest], answer_id: str = "") -> CoreGeneration:
        ids = {next(self._ids): sequence.id for sequence in sequences}
        for id_, sequence in zip(ids, sequences, strict=True):
            self.core.add(replace(sequence, id=id_))
        self._open.append(CoreGeneration(self, ids))
        return self._open[-1]

    async def inspect(self, model: str, salt_prefix: str, limit: int) -> Inspection:
        return EMPTY

    def find_origin(self, id_: int) -> Origin | None:
        return None

    def step(self) -> None:
        step = self.core.step()
        self.stats.append(step.stats)
        for output in step.outputs:
            for generation in self._open:
                generation.deliver(output)
