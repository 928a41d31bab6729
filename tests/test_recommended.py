"""Sampling settings of the model cards reach bundles that would have none."""

from __future__ import annotations

from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.recommended import complete_generation_config


def test_known_model_without_settings_gets_the_cards() -> None:
    completed = complete_generation_config("LiquidAI/LFM2-24B-A2B", {"eos_token_id": 7})
    options = GenerationOptions.from_generation_config(completed)
    assert completed["eos_token_id"] == 7
    assert (options.sampling.temperature, options.sampling.top_k) == (0.1, 50)
    assert options.sampling.repetition_penalty == 1.05


def test_checkpoint_with_its_own_settings_keeps_them() -> None:
    own = {"do_sample": True, "temperature": 1.5}
    assert complete_generation_config("LFM2-350M", own) == own


def test_unknown_model_gets_nothing() -> None:
    assert complete_generation_config("my-finetune", {}) == {}


def test_settings_that_the_checkpoint_does_have_win() -> None:
    completed = complete_generation_config("LFM2.5-350M", {"top_k": 20, "repetition_penalty": 1.2})
    assert completed["temperature"] == 0.1
    assert (completed["top_k"], completed["repetition_penalty"]) == (20, 1.2)
