"""A model's defaults and the caller's wishes become one checked set of options."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.sampling import SamplingOptions

FromConfig = GenerationOptions.from_generation_config


def test_defaults_are_greedy_and_unlimited() -> None:
    options = GenerationOptions()
    assert options.sampling == SamplingOptions()
    assert options.sampling.temperature == 0
    assert options.max_new_tokens is None
    assert (options.stop, options.stop_token_ids, options.eos_token_ids) == ((), (), ())


def test_demo_models_generation_config_is_read() -> None:
    options = FromConfig(json.loads((DEMO_MODEL / "generation_config.json").read_text()))
    assert options == GenerationOptions(
        sampling=SamplingOptions(temperature=0.7, min_p=0.1, repetition_penalty=1.05),
        eos_token_ids=(7,),
    )


def test_every_known_key_is_read_and_others_are_ignored() -> None:
    options = FromConfig(
        {
            "do_sample": True,
            "temperature": 0.5,
            "top_k": 40,
            "top_p": 0.9,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "max_new_tokens": 12,
            "stop_strings": ["END", "\n\n"],
            "eos_token_id": [7, 2],
            "bos_token_id": 1,
            "num_beams": 4,
            "transformers_version": "5.0",
        }
    )
    assert options == GenerationOptions(
        max_new_tokens=12,
        sampling=SamplingOptions(0.5, 40, 0.9, 0.05, 1.1),
        stop=("END", "\n\n"),
        eos_token_ids=(7, 2),
    )


@pytest.mark.parametrize(
    ("raw", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"do_sample": None, "temperature": 0.7}, 0.7),
        ({"do_sample": True, "temperature": None}, 1.0),
        ({"temperature": None}, 0.0),
    ],
)
def test_do_sample_and_temperature_decide_whether_to_sample(
    raw: dict[str, Any], temperature: float
) -> None:
    assert FromConfig(raw).sampling.temperature == temperature


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "top_p", "stop_strings"])
def test_null_in_the_config_means_absent(name: str) -> None:
    assert FromConfig({name: None}) == GenerationOptions()


def test_config_value_out_of_range_is_named() -> None:
    with pytest.raises(GenerationError, match=r"top_p is 1\.5"):
        FromConfig({"top_p": 1.5})


def test_overrides_reach_both_kinds_of_options() -> None:
    options = GenerationOptions().with_overrides(max_new_tokens=5, temperature=0.5, top_k=9)
    assert options == GenerationOptions(
        max_new_tokens=5, sampling=SamplingOptions(temperature=0.5, top_k=9)
    )


def test_overrides_leave_the_rest_and_the_original_alone() -> None:
    original = GenerationOptions(
        max_new_tokens=5, sampling=SamplingOptions(temperature=0.5), stop=("x",)
    )
    changed = original.with_overrides(top_k=9)
    assert changed == GenerationOptions(
        max_new_tokens=5, sampling=SamplingOptions(temperature=0.5, top_k=9), stop=("x",)
    )
    assert original.sampling.top_k == 0


def test_override_of_none_keeps_what_is_there() -> None:
    options = GenerationOptions(max_new_tokens=5, sampling=SamplingOptions(temperature=0.5))
    assert options.with_overrides(max_new_tokens=None, temperature=None, stop=None) == options


def test_override_of_nothing_clears() -> None:
    options = GenerationOptions(stop=("x",), ignore_eos=True, sampling=SamplingOptions(0.5))
    changed = options.with_overrides(stop=[], ignore_eos=False, temperature=0)
    assert changed == GenerationOptions(sampling=SamplingOptions(0))


def test_whole_sampling_can_be_replaced_and_then_overridden() -> None:
    options = GenerationOptions(sampling=SamplingOptions(temperature=0.5, top_k=3))
    changed = options.with_overrides(sampling=SamplingOptions(temperature=0.9), min_p=0.2)
    assert changed.sampling == SamplingOptions(temperature=0.9, min_p=0.2)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("stop", "END", ("END",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop_token_ids", 7, (7,)),
        ("stop_token_ids", [7, 8], (7, 8)),
        ("eos_token_ids", {7}, (7,)),
    ],
)
def test_one_value_or_a_list_becomes_a_tuple(name: str, value: Any, expected: Any) -> None:
    assert getattr(GenerationOptions().with_overrides(**{name: value}), name) == expected


def test_bias_may_be_a_mapping() -> None:
    options = GenerationOptions().with_overrides(logit_bias={5: -1.5, 3: 2}, presence_penalty=0.5)
    assert options.sampling == SamplingOptions(logit_bias=((5, -1.5), (3, 2)), presence_penalty=0.5)


def test_unknown_option_is_named_with_the_choices() -> None:
    with pytest.raises(GenerationError, match="no generation option 'temprature'") as caught:
        GenerationOptions().with_overrides(temprature=0.5)
    assert "temperature" in str(caught.value)
    assert "max_new_tokens" in str(caught.value)


def test_name_of_another_api_leads_to_ours() -> None:
    with pytest.raises(GenerationError, match=r"'max_tokens'; did you mean max_new_tokens"):
        GenerationOptions().with_overrides(max_tokens=3)


def test_unknown_option_is_refused_even_when_none() -> None:
    with pytest.raises(GenerationError, match="no generation option 'num_beams'"):
        GenerationOptions().with_overrides(num_beams=None)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_new_tokens", [0, -1, 1.5, True, "3"]),
        ("logprobs", [-1, 0.5, True, "2"]),
        ("stop", [("",), ("a", ""), (3,), b"ab"]),
        ("stop_token_ids", [(-1,), (1.5,), ("7",), (True,)]),
        ("eos_token_ids", [(-1,), (None,)]),
        ("temperature", [-1]),
    ],
)
def test_option_out_of_range_is_named(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(GenerationError, match=f"^{name} is "):
            GenerationOptions().with_overrides(**{name: value})
