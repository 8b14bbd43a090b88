"""What the roofline divides by: bytes and operations, counted again as the torch model computes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks import roofline
from benchmarks.machine import Machine
from benchmarks.roofline import Step, Weights, decode_step, experts_used, least_work, prompt_step, step_seconds
from model.attention import causal_attend, explicit_attention
from model.config import ModelConfig
from model.gpt import GPT, initialise
from model.layers import SelfAttention
from model.native.abi import open_library
from model.native.lowering import Lowering
from model.native.native_model import NativeModel
from model.paged import Span

DENSE = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    context_length=64,
)
KEYS_AND_VALUES = DENSE.hidden_size * 2 * DENSE.num_kv_heads * DENSE.head_dim  # numbers of a layer's weights for them
MIXTURE = replace(DENSE, num_experts=6, num_experts_per_token=2)
CONFIGS = {
    "swiglu": DENSE,
    "gelu with biases": replace(DENSE, feed_forward="gelu", feed_forward_bias=True, attention_bias=True),
    "untied": replace(DENSE, tie_embeddings=False),
}


def model_of(config: ModelConfig) -> GPT:
    model = GPT(config)
    initialise(model, torch.Generator().manual_seed(0))
    return model


def run(model: GPT, tokens: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Hidden states [tokens, hidden] of one sequence, and the experts [tokens, chosen] of every layer."""
    chosen: list[Tensor] = []

    def observe(layer: int, logits: Tensor) -> None:
        chosen.append(logits[0].topk(model.config.num_experts_per_token).indices)

    attend = causal_attend(model.config, len(tokens), torch.device("cpu"), explicit_attention)
    with torch.inference_mode():
        return model(torch.tensor([tokens]), torch.arange(len(tokens)), attend, observe)[0], chosen


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("wanted", [[4], [0, 2, 4]])
def test_products_of_a_step_are_those_that_the_torch_model_computes(config: ModelConfig, wanted: list[int]):
    """Of the last layer the rows that nobody wants need keys and values only."""
    model, step = model_of(config), Step("", [1, 2, 3, 4, 5], [], wanted)
    last = model.layers[1].attention
    assert isinstance(last, SelfAttention)
    in_last = {parameter.data_ptr() for parameter in model.layers[1].parameters()}
    operations, weights = 0, {}

    def counted(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        nonlocal operations
        num_rows = rows.numel() // rows.shape[-1]
        num_whole = len(wanted) if weight.data_ptr() in in_last else num_rows
        operations += 2 * num_whole * weight.numel()
        if weight is last.qkv.weight:
            operations += 2 * (num_rows - num_whole) * KEYS_AND_VALUES
        weights[weight.data_ptr()] = weight.numel()
        return torch.nn.functional.linear(rows, weight, bias)

    model.use_product(counted)
    with torch.inference_mode():
        model.unembed(run(model, step.tokens)[0][wanted])
    work = least_work(Weights.of(model), config, step, 0, weight_bytes=2)
    assert work.operations == operations
    assert work.num_bytes == 2 * sum(weights.values())


def test_of_a_mixture_every_row_meets_its_experts_and_every_one_used_is_read():
    model, step = model_of(MIXTURE), Step("", [1, 2, 3], [], [2])
    layer = [p.numel() for name, p in model.layers[0].named_parameters() if name.endswith("weight") and p.dim() == 2]
    expert = model.layers[0].feed_forward.up[0].numel() + model.layers[0].feed_forward.down[0].numel()
    unembedding = MIXTURE.vocab_size * MIXTURE.hidden_size
    work = least_work(Weights.of(model), MIXTURE, step, experts_used=7, weight_bytes=1)
    assert work.num_bytes == 2 * sum(layer) + 7 * expert + unembedding
    whole = sum(layer) + MIXTURE.num_experts_per_token * expert
    assert work.operations == 2 * (3 * whole + whole + 2 * KEYS_AND_VALUES + unembedding)


def test_attention_reads_every_key_of_a_sequence_once_and_meets_those_before_each_row():
    spans = [Span(5, 1, ()), Span(0, 4, ()), Span(10, 3, ())]
    nothing = Weights(shared=0, expert=0, unembedding=0)
    work = least_work(nothing, DENSE, Step("", [0] * 8, spans, list(range(8))), 0, weight_bytes=2)
    one_wanted = least_work(nothing, DENSE, Step("", [0] * 8, spans, [7]), 0, weight_bytes=2)
    read = met = 0
    for start, length, _ in spans:
        keys = set()
        for position in range(start, start + length):
            for key in range(position + 1):
                keys.add(key)
                met += 1
        read += len(keys)
    two_vectors_in_bfloat16 = 2 * 2 * DENSE.num_kv_heads * DENSE.head_dim
    score_and_sum = 2 * 2 * DENSE.num_heads * DENSE.head_dim
    assert work.num_bytes == DENSE.num_layers * two_vectors_in_bfloat16 * read
    assert work.operations == DENSE.num_layers * score_and_sum * met
    assert one_wanted.operations == score_and_sum * (met + 13) + 7 * 2 * KEYS_AND_VALUES


def test_the_experts_that_a_step_reads_are_those_that_its_rows_chose():
    model, step = model_of(MIXTURE), prompt_step(MIXTURE)
    native = NativeModel(Lowering(model, open_library()), 8, 1)
    _, chosen = run(model, step.tokens[:3])
    short = Step("", step.tokens[:3], [Span(0, 3, [0])], [2])
    assert experts_used(native, short) == sum(len(set(layer.flatten().tolist())) for layer in chosen)
    assert experts_used(NativeModel(Lowering(model_of(DENSE), open_library()), 8, 1), short) == 0


def test_sequences_of_a_decode_step_have_blocks_of_their_own_and_as_many_keys():
    step = decode_step(DENSE, 3)
    assert [span.start + span.length for span in step.spans] == [112] * 3
    blocks = [block for span in step.spans for block in span.blocks]
    assert len(set(blocks)) == len(blocks) == 3 * 7
    assert (len(step.tokens), step.wanted) == (3, [0, 1, 2])


def test_a_prompt_is_cut_to_the_context_and_unembeds_its_last_row():
    step = prompt_step(DENSE)
    assert (len(step.tokens), step.wanted, len(step.spans[0].blocks)) == (64, [63], 4)
    assert max(step.tokens) < DENSE.vocab_size


def test_nothing_is_quicker_than_its_slower_half():
    machine = Machine(bandwidth=100.0, peak=1000.0)
    assert machine.least_seconds(50, 200) == 0.5
    assert machine.least_seconds(50, 2000) == 2.0


def test_a_step_is_repeated_until_the_time_is_up_without_its_first_run():
    class Counted:
        def __init__(self) -> None:
            self.num_runs = 0

        def run(self, *step: object) -> None:
            self.num_runs += 1

    def seconds_of(each: float, budget: float) -> tuple[list[float], int]:
        native = Counted()
        times = step_seconds(native, Step("", [], [], []), budget, lambda: native.num_runs * each)  # type: ignore[arg-type]
        return times, native.num_runs

    assert seconds_of(1.0, 8.0) == ([1.0] * 8, 9)
    assert seconds_of(1.0, 0.0) == ([1.0] * roofline._LEAST_REPEATS, roofline._LEAST_REPEATS + 1)
