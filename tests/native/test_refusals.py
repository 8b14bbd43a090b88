"""What the native back end cannot do is an error with a sentence, and neither another answer nor the process's end."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from native_models import native_model
from test_oracle import BASE, random_model

from model.gpt import GPT
from model.native.abi import NativeError, best_instruction_set, check, open_library
from model.native.lowering import MAX_INT8_INPUTS, Lowering, UnsupportedError

FEW_ADDRESSES = """
import resource
import torch
from test_oracle import BASE, random_model
from model.native.abi import NativeError, open_library
from model.native.lowering import Lowering
from model.native.native_model import NativeModel
lowering = Lowering(random_model(BASE, torch.float32), open_library())
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    NativeModel(lowering, 1, 1000)
except NativeError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit addresses")
def test_threads_that_the_system_refuses_are_an_error() -> None:
    command = [sys.executable, "-c", FEW_ADDRESSES]
    environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:8]) == (0, "refused:"), done.stderr
    assert "the system does not give 1000 threads: " in done.stdout


@pytest.mark.parametrize("num_blocks", [-1, 0, 2**62])
def test_a_number_of_blocks_that_no_memory_holds_is_named(num_blocks: int) -> None:
    model = random_model(replace(BASE, num_layers=2), torch.float32)
    with pytest.raises(NativeError, match=rf"^num_blocks is {num_blocks}; it must be 1 to \d+$"):
        native_model(model, num_blocks, 1)


def test_a_draw_that_finds_no_memory_is_an_error() -> None:
    library = open_library()
    with pytest.raises(NativeError):
        check(library, library.minigpt_choose(None, 2**61, 0, None, None, None))


def test_a_context_whose_sums_an_int8_cache_cannot_hold_is_refused() -> None:
    longest = random_model(replace(BASE, context_length=MAX_INT8_INPUTS), torch.bfloat16)
    longer = random_model(replace(BASE, context_length=MAX_INT8_INPUTS + 1), torch.bfloat16)
    Lowering(longest, open_library(), kv_cache="int8")
    Lowering(longer, open_library())
    message = f"^context_length is {MAX_INT8_INPUTS + 1}; a cache of int8 takes at most {MAX_INT8_INPUTS}$"
    with pytest.raises(UnsupportedError, match=message):
        Lowering(longer, open_library(), kv_cache="int8")


def mix_product(model: GPT) -> None:
    model.unembedding.weight = torch.nn.Parameter(model.unembedding.weight.detach().float())


def mix_positions(model: GPT) -> None:
    assert model.position_embedding is not None
    model.position_embedding.float()


@pytest.mark.parametrize("mix", [mix_product, mix_positions])
def test_weights_of_two_types_are_refused(mix: Callable[[GPT], None]) -> None:
    model = random_model(replace(BASE, positions="learned", tie_embeddings=False), torch.bfloat16)
    Lowering(model, open_library())
    mix(model)
    with pytest.raises(UnsupportedError, match=r"a weight is torch.float32 and the embedding torch.bfloat16"):
        Lowering(model, open_library())


def test_the_best_instruction_set_is_what_a_session_takes() -> None:
    model = random_model(BASE, torch.float32)
    assert native_model(model, 1, 1).instruction_set == best_instruction_set(open_library())
