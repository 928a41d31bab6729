"""How each program that can read a bundle is told to, as code to copy.

Enters: an opened bundle and where it will lie. Leaves: one `Usage` a reader that finds its files
there, and of those that do not, how to get them. Nothing is run here; tests run the code.
"""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass

from lfm2_deploy.bundle import CANARY, EMBED_FILE, Bundle
from lfm2_deploy.charts.text import make_visible
from lfm2_deploy.chat import TEMPLATE_FILE
from lfm2_deploy.errors import Lfm2DeployError
from lfm2_deploy.tokenizer import read_tokenizer_config
from lfm2_deploy.unfinished import name_place

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
_EXTRAS = {
    "openvino-cpu": "openvino",
    "igpu": "openvino",
    "npu": "openvino",
    "webgpu": "webgpu",
    "qnn": "qnn",
}
# What OpenVINO calls the device a bundle was made for.
_OPENVINO_DEVICES = {"openvino-cpu": "CPU", "igpu": "GPU"}
_TOKENIZER = "tokenizer.json"
_BEGINNING = "The capital of France is"
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
    """Where a bundle lies: in a repository, or in a folder here."""
    if repository:
        return Place(repository.rpartition("/")[2], repository)
    return Place(make_visible(" ".join(name_place(bundle.path).split())))


def list_usages(bundle: Bundle, place: Place) -> tuple[Usage, ...]:
    """How every program that finds its files in a bundle reads it; three where it reads text."""
    if not reads_text(bundle):
        return (_use_ours(bundle, place),)
    found = [
        _use_ours(bundle, place),
        _use_genai(bundle, place),
        _use_transformersjs(bundle, place),
        _use_openvino_genai(bundle, place),
        _use_optimum(bundle, place),
        _use_optimum_intel(bundle, place),
    ]
    usages = [usage for usage in found if usage is not None]
    if len(usages) < 3:
        usages.append(_use_openai(bundle, place))
    return tuple(usages)


def list_missing(bundle: Bundle) -> tuple[str, ...]:
    """Sentences about programs that could read it and lack their files, with the way to them."""
    manifest = bundle.manifest
    # Of somebody else's graph, and of one that takes embeddings, there is none for them.
    is_other = manifest.imported is not None or EMBED_FILE in manifest.files
    if manifest.target != "cpu" or is_other:
        return ()
    own = {record.io for record in manifest.readers}
    ways = {
        _TRANSFORMERSJS: "transformers.js (browsers, Node)",
        _GENAI_LEGACY: "onnxruntime-genai before 0.17, in place of later ones",
    }
    return tuple(
        f"{program}: export again with `--io {io}`" for io, program in ways.items() if io not in own
    )


def reads_text(bundle: Bundle) -> bool:
    """Whether it has a tokenizer; without one it takes token ids only."""
    return _TOKENIZER in bundle.manifest.files


def find_transformersjs(bundle: Bundle) -> str | None:
    """The dtype by which transformers.js finds its graph; None where a bundle has none for it."""
    for record in bundle.manifest.readers:
        if record.io == _TRANSFORMERSJS:
            name = record.file.rpartition("/")[2]
            ending = name.removeprefix("model").removesuffix(".onnx")
            return _DTYPES.get(ending, "fp32")
    return None


def _use_ours(bundle: Bundle, place: Place) -> Usage:
    name = place.folder if place.repository else f"./{place.folder}"
    quoted = shlex.quote(name)
    lines = [f"pip install {_name_package(bundle, *(['hub'] if place.repository else []))}"]
    if place.repository:
        lines.append(f"lfm2-deploy pull {shlex.quote(place.repository)}")
    if can_chat(bundle):
        lines.append(f"lfm2-deploy chat {quoted}     # talk with it")
    if CANARY in bundle.manifest.files:
        lines.append(f"lfm2-deploy check {quoted}    # does this device compute it rightly?")
    if not reads_text(bundle):
        return Usage("lfm2-deploy", (("sh", "\n".join(lines)),))
    python = [
        "import lfm2_deploy",
        "",
        f"model = lfm2_deploy.load({_quote(name)})",
        f'print(model.generate("{_BEGINNING}", max_new_tokens=20).text)',
    ]
    return Usage("lfm2-deploy", (("sh", "\n".join(lines)), ("python", "\n".join(python))))


def can_chat(bundle: Bundle) -> bool:
    """Whether it has a chat template; base models often have none."""
    if not reads_text(bundle) or TEMPLATE_FILE in bundle.manifest.files:
        return reads_text(bundle)
    with contextlib.suppress(Lfm2DeployError):
        return read_tokenizer_config(bundle.path).get("chat_template") is not None
    return False


def _name_package(bundle: Bundle, *extras: str) -> str:
    own = [_EXTRAS[bundle.manifest.target]] if bundle.manifest.target in _EXTRAS else []
    every = [*own, *extras]
    return f"'lfm2-deploy[{','.join(every)}]'" if every else "lfm2-deploy"


def _use_genai(bundle: Bundle, place: Place) -> Usage | None:
    if "genai_config.json" not in bundle.manifest.files:
        return None
    legacy = any(record.io == _GENAI_LEGACY for record in bundle.manifest.readers)
    # The canonical graph has operators that onnxruntime knows since 1.32.
    packages = "'onnxruntime-genai>=0.17' 'onnxruntime>=1.32'"
    if legacy:
        packages = "'onnxruntime-genai>=0.14'"
    if can_chat(bundle):
        prompt = [
            f'messages = json.dumps([{{"role": "user", "content": "{_QUESTION}"}}])',
            "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)",
        ]
    else:
        prompt = [f'prompt = "{_BEGINNING}"']
    lines = [
        *(["import json", ""] if len(prompt) > 1 else []),
        "import onnxruntime_genai as og",
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
    return _use("onnxruntime-genai", packages, place, lines)


def _use_transformersjs(bundle: Bundle, place: Place) -> Usage | None:
    dtype = find_transformersjs(bundle)
    if dtype is None:
        return None
    where = place.repository or place.folder
    names = "pipeline" if place.repository else "env, pipeline"
    if can_chat(bundle):
        asked = f'[{{ role: "user", content: "{_QUESTION}" }}]'
        answer = "generated_text.at(-1).content"
    else:
        asked, answer = f'"{_BEGINNING}"', "generated_text"
    lines = [
        f'import {{ {names} }} from "@huggingface/transformers";',
        "",
        *([] if place.repository else ['env.localModelPath = "./";']),
        f'const generator = await pipeline("text-generation", {_quote(where)}, {{',
        f'  dtype: "{dtype}",',
        "});",
        f"const output = await generator({asked}, {{ max_new_tokens: 64 }});",
        f"console.log(output[0].{answer});",
    ]
    install = "npm install --ignore-scripts @huggingface/transformers@4.3.2"
    return Usage("transformers.js", (("sh", install), ("js", "\n".join(lines))))


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
    packages = "openvino-genai openvino-tokenizers"
    return _use("openvino-genai", packages, place, lines)


def _use_optimum(bundle: Bundle, place: Place) -> Usage | None:
    manifest = bundle.manifest
    if manifest.target != "cpu" or manifest.imported is not None or EMBED_FILE in manifest.files:
        return None
    lines = [
        "from lfm2_deploy.integrations.optimum import register",
        *_import_snapshot(place),
        "from optimum.onnxruntime import ORTModelForCausalLM",
        "from transformers import AutoTokenizer",
        "",
        "register()",
    ]
    packages = "'lfm2-deploy[optimum]'"
    lines += _generate_by_transformers("ORTModelForCausalLM", place)
    return _use("Optimum (optimum-onnx)", packages, place, lines, is_apart=True)


def _use_optimum_intel(bundle: Bundle, place: Place) -> Usage | None:
    manifest = bundle.manifest
    if manifest.target not in _OPENVINO_DEVICES or manifest.imported is not None:
        return None
    device = _OPENVINO_DEVICES[manifest.target]
    options = "" if device == "CPU" else f', device="{device}"'
    lines = [
        *_import_snapshot(place),
        "from optimum.intel import OVModelForCausalLM",
        "from transformers import AutoTokenizer",
        "",
    ]
    lines += _generate_by_transformers("OVModelForCausalLM", place, options)
    packages = "'optimum-intel[openvino]>=2.2'"
    return _use("Optimum (optimum-intel)", packages, place, lines, is_apart=True)


def _generate_by_transformers(model: str, place: Place, options: str = "") -> list[str]:
    """Lines that continue a text with a model of transformers' interface."""
    return [
        f"folder = {_find_folder(place)}",
        f"model = {model}.from_pretrained(folder{options})",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f'tokens = tokenizer("{_BEGINNING}", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**tokens, max_new_tokens=20)[0]))",
    ]


def _use_openai(bundle: Bundle, place: Place) -> Usage:
    name = place.folder if place.repository else f"./{place.folder}"
    extras = ["hub"] if place.repository else []
    served = [f"pip install {_name_package(bundle, 'serve', *extras)} openai"]
    served += [f"lfm2-deploy pull {shlex.quote(place.repository)}"] if place.repository else []
    served.append(f"lfm2-deploy serve {shlex.quote(name)}")
    if can_chat(bundle):
        call, answer = "chat.completions", "message.content"
        asked = f'messages=[{{"role": "user", "content": "{_QUESTION}"}}],'
    else:
        call, answer = "completions", "text"
        asked = f'prompt="{_BEGINNING}",'
    lines = [
        "from openai import OpenAI",
        "",
        'client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")',
        f"answer = client.{call}.create(",
        f"    model={_quote(bundle.manifest.model)},",
        f"    {asked}",
        ")",
        f"print(answer.choices[0].{answer})",
    ]
    blocks = (("sh", "\n".join(served)), ("python", "\n".join(lines)))
    return Usage("OpenAI's API (through lfm2-deploy)", blocks)


def _use(
    reader: str, packages: str, place: Place, lines: list[str], is_apart: bool = False
) -> Usage:
    """A program's Python, below what installs it."""
    hub = " huggingface_hub" if place.repository else ""
    remark = "    # in an environment of its own" if is_apart else ""
    install = f"pip install {packages}{hub}{remark}"
    return Usage(reader, (("sh", install), ("python", "\n".join(lines))))


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
