"""Sampling parameters made from others."""

from dataclasses import fields, replace

import pytest

from server.engine.params import _LISTS, ParameterError, SamplingParams
from server.engine.sampling.ranges import RANGES

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


def test_parameters_by_name_are_those_of_the_constructor() -> None:
    assert SamplingParams.of({"top_k": 7, "seed": 3}) == SamplingParams(top_k=7, seed=3)
    with pytest.raises(ParameterError, match="top_k is -1"):
        SamplingParams.of({"top_k": -1})


def test_what_is_left_as_it_is_is_in_range() -> None:
    for name, allowed in RANGES.items():
        if (value := getattr(SamplingParams(), name)) is not None:
            allowed.check(name, value)


def test_every_list_is_checked_as_one() -> None:
    assert {field.name for field in fields(SamplingParams) if "tuple" in str(field.type)} == _LISTS
