"""What a native step tells of its inside, against the torch forward's, and that telling it changes no bit."""

import copy
from collections.abc import Iterator, Sequence

import pytest
import torch
from native_models import native_model
from test_oracle import SETS, VARIANTS, random_model, steps

from model.native.lowering import KVCache
from model.native.observed import Observed
from model.paged import Span
from server.engine.torch_runner import TorchRunner
from server.engine.tracing_inside import View, Watch
from server.engine.tracing_types import TraceOptions

NAMES = ("llama", "gpt2", "alibi, 3 heads", "sliding window", "one kv head", "odd head", "post-norm", "moe", "moe, all")
EVERYTHING = TraceOptions(0, experts=True, attention=True)


def views_of(spans: Sequence[Span]) -> Iterator[View]:
    row = 0
    for span in spans:
        for position in range(span.start, span.start + span.length):
            yield View(row, position, span.blocks, EVERYTHING)
            row += 1


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_tells_what_the_torch_forward_does(name: str, dtype: torch.dtype, instruction_set: str) -> None:
    config = VARIANTS[name]
    model = random_model(config, dtype)
    torch_runner = TorchRunner(copy.deepcopy(model).float(), 16)
    native = native_model(model, 16, 2, instruction_set)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for tokens, spans, wanted in steps(config):
        views = list(views_of(spans))
        torch_runner.run(tokens, spans, wanted, Watch(views))
        observed = Observed(config, len(tokens), config.num_experts > 0, {view.row: view.position for view in views})
        native.run(tokens, spans, wanted, observed)
        for view in views:
            told = torch.from_numpy(observed.attention[view.row])
            expected = torch.tensor([[list(memoryview(head).cast("f")) for head in layer] for layer in view.attention])
            torch.testing.assert_close(told, expected, rtol=0, atol=tolerance)
            assert torch.equal(told == 0, expected == 0)  # hidden keys, and no other
            if dtype == torch.float32:  # where rounding may not turn the router's choice
                for layer, routed in enumerate(view.experts):
                    assert tuple(observed.chosen[layer, view.row]) == routed.experts
                    assert observed.gates[layer, view.row] == pytest.approx(routed.weights, abs=tolerance)


@pytest.mark.parametrize("name", ["llama", "alibi, 3 heads", "sliding window"])
def test_a_cache_of_int8_tells_the_weights_it_uses(name: str) -> None:
    config = VARIANTS[name]
    model = random_model(config, torch.float32)
    plain, small = native_model(model, 16, 2), native_model(model, 16, 2, kv_cache="int8")
    for tokens, spans, wanted in steps(config):
        positions = {view.row: view.position for view in views_of(spans)}
        told = [Observed(config, len(tokens), False, positions) for _ in range(2)]
        plain.run(tokens, spans, wanted, told[0])
        small.run(tokens, spans, wanted, told[1])
        for row in positions:
            exact, rounded = (torch.from_numpy(one.attention[row]) for one in told)
            assert torch.equal(rounded == 0, exact == 0)
            torch.testing.assert_close(rounded.sum(-1), torch.ones(rounded.shape[:-1]))
            torch.testing.assert_close(rounded, exact, rtol=0, atol=2e-2)


@pytest.mark.parametrize("kv_cache", ["auto", "int8"])
@pytest.mark.parametrize("name", ["llama", "moe", "sliding window"])
def test_a_watched_step_has_the_same_bits(name: str, kv_cache: KVCache) -> None:
    config = VARIANTS[name]
    model = random_model(config, torch.bfloat16)
    plain, watched = (native_model(model, 16, 2, kv_cache=kv_cache) for _ in range(2))
    for tokens, spans, wanted in steps(config):
        some = {view.row: view.position for view in views_of(spans) if view.row % 3 == 0}
        observed = Observed(config, len(tokens), config.num_experts > 0, some)
        logits, _ = watched.run(tokens, spans, wanted, observed)
        assert torch.equal(logits, plain.run(tokens, spans, wanted)[0])
        assert set(observed.attention) == set(some)
