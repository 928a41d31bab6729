"""The code in a card runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lfm2_deploy import export, open_bundle
from lfm2_deploy.bundle import CANARY, Bundle, seal
from lfm2_deploy.card.usage import Place, Usage, list_usages
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.manifest import ReaderRecord

from .conftest import Make


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in the folder that its card names."""
    place = tmp_path_factory.mktemp("used") / "lfm2-demo-9m-cpu-int4"
    return export(str(DEMO_MODEL), place, canary=False).path


@pytest.mark.parametrize("reader", ["lfm2-deploy", "onnxruntime-genai"])
def test_python_of_a_reader_speaks(bundle: Path, reader: str) -> None:
    usages = {u.reader: u for u in list_usages(open_bundle(bundle), Place(bundle.name))}
    code = dict(usages[reader].blocks)["python"]
    if reader == "onnxruntime-genai":
        pytest.importorskip("onnxruntime_genai", reason="NOT RUN: onnxruntime-genai is absent")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=bundle.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 3


@pytest.mark.parametrize(
    ("target", "extra"), [("openvino-cpu", "openvino"), ("igpu", "openvino"), ("npu", "openvino")]
)
def test_package_comes_with_what_the_target_needs(make: Make, target: str, extra: str) -> None:
    text = "".join(code for usage in show(make(target=target)) for _, code in usage.blocks)
    assert f"pip install 'lfm2-deploy[{extra}]'" in text
    assert f"pip install 'lfm2-deploy[{extra},serve]' openai" in text


def test_openvino_is_told_the_device_of_the_target(make: Make) -> None:
    files = dict.fromkeys(
        ("openvino_model.xml", "openvino_tokenizer.xml", "openvino_detokenizer.xml"), b"<net/>"
    )
    codes = {
        usage.reader: dict(usage.blocks)["python"]
        for usage in show(make("i", files, target="igpu"))
    }
    assert ', "GPU")' in codes["openvino-genai"]
    assert 'device="GPU"' in codes["Optimum (optimum-intel)"]


def test_base_model_is_not_asked_to_chat(make: Make) -> None:
    files = {"genai_config.json": b"{}", "onnx/model.onnx": b"graph"}
    bundle = make("base", files, readers=(ReaderRecord("transformersjs", "onnx/model.onnx"),))
    text = "".join(code for usage in show(bundle) for _, code in usage.blocks)
    assert "chat" not in text
    assert "role" not in text
    chatting = make("chatting", {**files, "chat_template.jinja": b"{{ messages }}"})
    assert "lfm2-deploy chat" in dict(show(chatting)[0].blocks)["sh"]


def test_bundle_without_tokenizer_is_not_said_to_read_text(make: Make) -> None:
    bundle = make(files={CANARY: b"{}"})
    (bundle.path / "tokenizer.json").unlink()
    seal(bundle.path, replace(bundle.manifest, files={}))
    (usage,) = show(open_bundle(bundle.path))
    assert [language for language, _ in usage.blocks] == ["sh"]
    assert "lfm2-deploy check" in dict(usage.blocks)["sh"]


def show(bundle: Bundle) -> tuple[Usage, ...]:
    return list_usages(bundle, Place("it"))


def test_repository_is_where_every_reader_looks(bundle: Path) -> None:
    place = Place("whales", "somebody/whales")
    for usage in list_usages(open_bundle(bundle), place):
        text = "\n".join(code for _, code in usage.blocks)
        assert "./" not in text
        assert "whales" in text or "OpenAI" in text
