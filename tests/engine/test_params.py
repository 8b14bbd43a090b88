"""Sampling parameters made from others."""

from dataclasses import replace

import pytest

from server.engine.params import ParameterError, SamplingParams

BASE = SamplingParams(max_tokens=9, min_tokens=3, temperature=0.5, top_k=7, seed=1, stop_token_ids=(4,))


def test_parameters_for_a_sequence_are_those_with_another_length_and_seed() -> None:
    assert BASE.program is not None  # worked out once, from the seed among others
    made = BASE.for_sequence(5, 2)
    assert made == replace(BASE, max_tokens=5, seed=2)
    assert made.program == replace(BASE, max_tokens=5, seed=2).program != BASE.program


def test_a_sequence_too_short_for_its_minimum_is_refused_as_by_the_constructor() -> None:
    with pytest.raises(ParameterError) as made:
        BASE.for_sequence(2, 1)
    with pytest.raises(ParameterError) as constructed:
        replace(BASE, max_tokens=2)
    assert str(made.value) == str(constructed.value)
