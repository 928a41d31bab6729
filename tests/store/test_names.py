from __future__ import annotations

from pathlib import Path

import pytest

from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import StoreError
from lfm2_deploy.store.names import check_name, is_name, make_name, name_bundle


@pytest.mark.parametrize("name", ["LFM2-350M-cpu-int4", "a", "7b", "my_model.v2", "x" * 100])
def test_plain_name_is_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".hidden", "-x", "a/b", "a\\b", "../a", "a b", "ä", "a\n", "a:b", "a@b"),
        *("x" * 101, "ends.", "con", "NUL.txt", "lpt1"),
    ],
)
def test_name_that_could_leave_the_store_or_break_a_system_is_refused(name: str) -> None:
    with pytest.raises(StoreError, match="is no name for a model"):
        check_name(name)


@pytest.mark.parametrize(
    ("model", "adapter", "name"),
    [
        ("LiquidAI/LFM2-350M", None, "LFM2-350M-cpu-int4"),
        ("synthetic:tiny-moe@7", None, "tiny-moe-7-cpu-int4"),
        ("files/LFM2-350M-Q8_0.gguf", None, "LFM2-350M-Q8_0-cpu-int4"),
        ("LiquidAI/LFM2-350M-GGUF:Q8_0", None, "LFM2-350M-GGUF-Q8_0-cpu-int4"),
        (str(DEMO_MODEL), Path("some/lora"), f"{DEMO_MODEL.name}-lora-cpu-int4"),
    ],
)
def test_default_name_tells_model_target_and_precision(
    model: str, adapter: Path | None, name: str
) -> None:
    assert name_bundle(model, adapter, "cpu", "int4") == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("LFM2-350M-cpu-int4", "LFM2-350M-cpu-int4"),
        ("Müller's model-cpu-int4", "M-ller-s-model-cpu-int4"),
        ("..hidden", "hidden"),
        ("", "model"),
        ("日本", "model"),
        ("con", "model-con"),
        ("x" * 300, "x" * 100),
    ],
)
def test_any_text_becomes_a_name(text: str, name: str) -> None:
    assert make_name(text) == name
    assert is_name(name)
