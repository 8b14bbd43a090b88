"""What a beam search leaves in the prefix cache, as the engine tells of it."""

from engine_driver import decode, engine_core
from tiny_models import FAMILIES, tiny_model

from server.engine.params import SamplingParams
from server.engine.types import BeamSearch, SequenceRequest


def test_blocks_that_ended_beams_leave_behind_are_known_by_their_contents() -> None:
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    request = SequenceRequest(0, tuple(range(5, 30)), params, "a|", beams=BeamSearch(4))
    core = engine_core(tiny_model(FAMILIES["gqa"]))
    decode(core, [request])
    seen = core.inspect("a|", 1_000)
    assert seen.num_prefix_blocks == seen.num_cached > 2
