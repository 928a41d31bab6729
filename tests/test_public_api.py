"""The names the package promises; a change here is a change for its users."""

from __future__ import annotations

import pytest

import lfm2_deploy

NAMES = [
    "Answer",
    "AsyncStream",
    "Bundle",
    "Completion",
    "Engine",
    "EngineLimits",
    "Finished",
    "GenerationOptions",
    "Grammar",
    "LanguageModel",
    "Lfm2DeployError",
    "LoadProgress",
    "ModelStore",
    "PrefixStore",
    "PromptCache",
    "QueueFullError",
    "ReasoningDelta",
    "SamplingOptions",
    "Stream",
    "TextChunk",
    "TextDelta",
    "ToolCall",
    "ToolCallArguments",
    "ToolCallStarted",
    "compare_models",
    "export",
    "import_model",
    "load",
    "open_bundle",
    "prepare",
    "push",
    "verify",
]


def test_public_names_are_exactly_these() -> None:
    assert lfm2_deploy.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_public_name_resolves_to_something_of_that_name(name: str) -> None:
    found = getattr(lfm2_deploy, name)
    assert callable(found)
    assert found.__name__ == name
    assert found.__doc__


def test_star_import_brings_every_public_name() -> None:
    namespace: dict[str, object] = {}
    exec("from lfm2_deploy import *", namespace)
    assert set(NAMES) <= set(namespace)


@pytest.mark.parametrize("name", ["generate_text", "Export", "_no_such_name"])
def test_unknown_attribute_raises_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'lfm2_deploy' has no attribute '{name}'"):
        getattr(lfm2_deploy, name)


def test_names_are_offered_before_they_are_imported() -> None:
    assert dir(lfm2_deploy) == sorted(NAMES)
