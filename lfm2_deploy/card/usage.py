"""How each program that can read a bundle is told to, as code to copy.

Enters: an opened bundle and where it will lie. Leaves: one `Usage` a reader that finds its files
there, and of those that do not, how to get them. Nothing is run here; tests run the code.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.charts.text import make_visible

# What transformers.js calls the endings of its files, `onnx/model{ending}.onnx`.
_DTYPES = {
    "": "fp32",
    "_fp16": "fp16",
    "_q4": "q4",
    "_q4f16": "q4f16",
    "_quantized": "q8",
    "_int8": "int8",
    "_uint8": "uint8",
    "_bnb4": "bnb4",
}
_TRANSFORMERSJS, _GENAI_LEGACY = "transformersjs", "genai-legacy"
# What each target's runtime needs beside the package itself.
_EXTRAS = {"openvino": "openvino", "npu": "openvino", "webgpu": "webgpu", "qnn": "qnn"}
# What openvino-genai calls the device a bundle was made for.
_OPENVINO_DEVICES = {"openvino": "CPU", "npu": "NPU"}
_AWKWARD = re.compile(r"[^\w.-]+")
_QUESTION = "Is a whale a fish?"


@dataclass(frozen=True, slots=True)
class Usage:
    """How one program reads a bundle.

    Args:
        reader: the program, for people.
        blocks: (language, code), in order.
    """

    reader: str
    blocks: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reader of the card finds the bundle.

    Args:
        folder: what its folder is called.
        repository: its Hub id; "" where it lies in a folder only.
    """

    folder: str
    repository: str = ""


def find_place(bundle: Bundle, repository: str) -> Place:
    """Where a bundle lies: in a repository, or in a folder of the name that `export` gives."""
    if repository:
        return Place(repository.rpartition("/")[2], repository)
    manifest = bundle.manifest
    model = manifest.model.replace("\\", "/").rstrip("/").rpartition("/")[2]
    parts = (model, manifest.origin.adapter, manifest.target, manifest.precision)
    return Place(_AWKWARD.sub("-", "-".join(part for part in parts if part)).strip("-."))


def list_usages(bundle: Bundle, place: Place) -> tuple[Usage, ...]:
    """How every program that finds its files in a bundle reads it; three at least."""
    found = [
        _use_ours(bundle, place),
        _use_genai(bundle, place),
        _use_transformersjs(bundle, place),
        _use_openvino_genai(bundle, place),
    ]
    usages = [usage for usage in found if usage is not None]
    if len(usages) < 3:
        usages.append(_use_openai(bundle, place))
    return tuple(usages)


def list_missing(bundle: Bundle) -> tuple[str, ...]:
    """Sentences about programs that could read it and lack their files, with the way to them."""
    manifest = bundle.manifest
    if manifest.target != "cpu":
        return ()
    own = {record.io for record in manifest.readers}
    ways = {
        _TRANSFORMERSJS: "transformers.js (browsers, Node)",
        _GENAI_LEGACY: "onnxruntime-genai before 0.17, in place of later ones",
    }
    return tuple(
        f"{program}: export again with `--io {io}`" for io, program in ways.items() if io not in own
    )


def find_transformersjs(bundle: Bundle) -> str | None:
    """The dtype by which transformers.js finds its graph; None where a bundle has none for it."""
    for record in bundle.manifest.readers:
        if record.io == _TRANSFORMERSJS:
            name = record.file.rpartition("/")[2]
            ending = name.removeprefix("model").removesuffix(".onnx")
            return _DTYPES.get(ending, "fp32")
    return None


def _use_ours(bundle: Bundle, place: Place) -> Usage:
    extras = [_EXTRAS[bundle.manifest.target]] if bundle.manifest.target in _EXTRAS else []
    extras += ["hub"] if place.repository else []
    package = f"'lfm2-deploy[{','.join(extras)}]'" if extras else "lfm2-deploy"
    name = place.folder if place.repository else f"./{place.folder}"
    lines = [f"pip install {package}"]
    if place.repository:
        lines.append(f"lfm2-deploy pull {shlex.quote(place.repository)}")
    lines += [
        f"lfm2-deploy chat {shlex.quote(name)}     # talk with it",
        f"lfm2-deploy check {shlex.quote(name)}    # does this device compute it rightly?",
    ]
    python = [
        "import lfm2_deploy",
        "",
        f"model = lfm2_deploy.load({_quote(name)})",
        'print(model.generate("The capital of France is", max_new_tokens=20).text)',
    ]
    return Usage("lfm2-deploy", (("sh", "\n".join(lines)), ("python", "\n".join(python))))


def _use_genai(bundle: Bundle, place: Place) -> Usage | None:
    needed = {"genai_config.json", "tokenizer.json"}
    if not needed <= bundle.manifest.files.keys():
        return None
    legacy = any(record.io == _GENAI_LEGACY for record in bundle.manifest.readers)
    versions = "before 0.17" if legacy else "0.17 or later"
    if "chat_template.jinja" in bundle.manifest.files:
        prompt = [
            f'messages = json.dumps([{{"role": "user", "content": "{_QUESTION}"}}])',
            "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)",
        ]
    else:
        prompt = ['prompt = "The capital of France is"']
    lines = [
        *(["import json", ""] if len(prompt) > 1 else []),
        f"import onnxruntime_genai as og  # {versions}",
        *_import_snapshot(place),
        "",
        f"model = og.Model({_find_folder(place)})",
        "tokenizer = og.Tokenizer(model)",
        *prompt,
        "parameters = og.GeneratorParams(model)",
        f"parameters.set_search_options(max_length={min(256, bundle.manifest.context_length)})",
        "generator = og.Generator(model, parameters)",
        "generator.append_tokens(tokenizer.encode(prompt))",
        "stream = tokenizer.create_stream()",
        "while not generator.is_done():",
        "    generator.generate_next_token()",
        '    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)',
    ]
    return Usage("onnxruntime-genai", (("python", "\n".join(lines)),))


def _use_transformersjs(bundle: Bundle, place: Place) -> Usage | None:
    dtype = find_transformersjs(bundle)
    if dtype is None:
        return None
    where = place.repository or place.folder
    names = "pipeline" if place.repository else "env, pipeline"
    lines = [
        f'import {{ {names} }} from "@huggingface/transformers";',
        "",
        *([] if place.repository else ['env.localModelPath = "./";']),
        f'const generator = await pipeline("text-generation", {_quote(where)}, {{',
        f'  dtype: "{dtype}",',
        "});",
        f'const messages = [{{ role: "user", content: "{_QUESTION}" }}];',
        "const output = await generator(messages, { max_new_tokens: 64 });",
        "console.log(output[0].generated_text.at(-1).content);",
    ]
    return Usage("transformers.js", (("js", "\n".join(lines)),))


def _use_openvino_genai(bundle: Bundle, place: Place) -> Usage | None:
    needed = {"openvino_model.xml", "openvino_tokenizer.xml", "openvino_detokenizer.xml"}
    if not needed <= bundle.manifest.files.keys():
        return None
    device = _OPENVINO_DEVICES.get(bundle.manifest.target, "CPU")
    lines = [
        "import openvino_genai",
        *_import_snapshot(place),
        "",
        f'pipeline = openvino_genai.LLMPipeline({_find_folder(place)}, "{device}")',
        f'print(pipeline.generate("{_QUESTION}", max_new_tokens=64))',
    ]
    return Usage("openvino-genai", (("python", "\n".join(lines)),))


def _use_openai(bundle: Bundle, place: Place) -> Usage:
    name = place.folder if place.repository else f"./{place.folder}"
    served = f"pip install 'lfm2-deploy[serve]' openai\nlfm2-deploy serve {shlex.quote(name)}"
    lines = [
        "from openai import OpenAI",
        "",
        'client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")',
        "answer = client.chat.completions.create(",
        f"    model={_quote(bundle.manifest.model)},",
        f'    messages=[{{"role": "user", "content": "{_QUESTION}"}}],',
        ")",
        "print(answer.choices[0].message.content)",
    ]
    return Usage(
        "OpenAI's API (through lfm2-deploy)", (("sh", served), ("python", "\n".join(lines)))
    )


def _import_snapshot(place: Place) -> list[str]:
    return ["from huggingface_hub import snapshot_download"] if place.repository else []


def _find_folder(place: Place) -> str:
    if place.repository:
        return f"snapshot_download({_quote(place.repository)})"
    return _quote(f"./{place.folder}")


def _quote(text: str) -> str:
    """As a string of Python and of JavaScript."""
    line = make_visible(" ".join(text.split()))
    return '"' + line.replace("\\", "\\\\").replace('"', '\\"') + '"'
