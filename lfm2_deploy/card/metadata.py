"""A card's metadata: the YAML between its first two lines of `---`, as the Hub reads it.

Written and merged as text, key by key, since the runtime's packages bring no YAML. What is not
known is left out, with a comment that says so. A key that somebody changed or added by hand stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.card.usage import find_transformersjs
from lfm2_deploy.checkpoint.source import has_hub_form

HUB = "https://huggingface.co"
# The license of the models that Liquid AI itself publishes, and where their cards link to it.
_LFM_OWNER, _LFM_LICENSE = "LiquidAI", "lfm1.0"
_FENCE = "---"
# Text that YAML takes for text without quotes, but for its words for true, false and nothing.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
_KEY = re.compile(r"([A-Za-z_][\w-]*)\s*:")
_LICENSE = "license"

Items = Mapping[str, str]


def describe(bundle: Bundle) -> dict[str, str]:
    """The metadata of a bundle: key -> its lines of YAML. A comment's key begins with "#"."""
    manifest = bundle.manifest
    items = {**_describe_license(bundle), **_describe_base(bundle)}
    items["library_name"] = _write("library_name", _choose_library(bundle))
    items["pipeline_tag"] = _write("pipeline_tag", "text-generation")
    tags = ["lfm2", *(["moe"] if bundle.config.moe is not None else [])]
    tags += ["openvino" if bundle.graph.suffix == ".xml" else "onnx"]
    tags += ["onnxruntime-genai"] if "genai_config.json" in manifest.files else []
    tags += ["transformers.js"] if find_transformersjs(bundle) is not None else []
    tags += [manifest.precision, "lfm2-deploy"]
    items["tags"] = _write_list("tags", list(dict.fromkeys(tags)))
    return items


def find_base(bundle: Bundle) -> str:
    """The Hub id of the model it was made from, of a GGUF file its repository; "" if not known."""
    origin = bundle.manifest.origin
    parts = origin.name.split("/")
    is_file = len(parts) == 3 and parts[2].lower().endswith(".gguf")
    name = "/".join(parts[:2]) if is_file else origin.name
    return name if origin.kind == "hub" and has_hub_form(name) else ""


def read_value(items: Items, key: str) -> str:
    """A key's value where it is one line of text; "" where it is absent or more than that."""
    _, _, value = items.get(key, "").partition(":")
    text = value.strip()
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            return ""
    return text.strip("'")


def split(text: str) -> tuple[dict[str, str], str]:
    """A card -> its metadata and the rest; none where it does not begin with any."""
    lines = text.split("\n")
    ends = [number for number, line in enumerate(lines) if line.rstrip() == _FENCE]
    if not ends or ends[0] != 0 or len(ends) < 2:
        return {}, text
    return _read_items(lines[1 : ends[1]]), "\n".join(lines[ends[1] + 1 :])


def write(items: Items) -> str:
    """The lines between, and with, the fences."""
    return "\n".join([_FENCE, *items.values(), _FENCE]) + "\n"


def merge(there: Items, before: Items, now: Items) -> dict[str, str]:
    """Metadata as it should be now, with what somebody wrote by hand.

    Args:
        there: what the card says.
        before: what was written of the bundle that the card was made for.
        now: what would be written of the bundle as it is.
    """
    merged = {}
    for key, line in now.items():
        is_own = key in there and there[key] != before.get(key)
        merged[key] = there[key] if is_own and key != "tags" else line
    if "tags" in there:
        own = [tag for tag in read_list(there["tags"]) if tag not in read_list(before["tags"])]
        merged["tags"] = _write_list("tags", list(dict.fromkeys([*read_list(now["tags"]), *own])))
    own_keys = there.keys() - before.keys()
    merged |= {key: line for key, line in there.items() if key in own_keys and key not in merged}
    if _LICENSE in merged and _LICENSE not in now:
        merged.pop("#license", None)  # somebody said what was not known
    elif merged.get(_LICENSE) != now.get(_LICENSE):
        for key in ("license_name", "license_link"):  # of the license that was there before
            if key in merged and key not in there:
                del merged[key]
    return merged


def read_list(block: str) -> list[str]:
    """The values of a key with a list of words, written below it or in brackets."""
    first, _, rest = block.partition("\n")
    inline = first.partition(":")[2].strip()
    words = inline.strip("[]").split(",") if inline else []
    words += [line.strip()[1:] for line in rest.split("\n") if line.strip().startswith("-")]
    return [word.strip().strip("\"'") for word in words if word.strip()]


def _describe_license(bundle: Bundle) -> dict[str, str]:
    base = find_base(bundle)
    if base.partition("/")[0] == _LFM_OWNER:
        link = f"{HUB}/{base}/blob/main/LICENSE"
        told = {_LICENSE: "other", "license_name": _LFM_LICENSE, "license_link": link}
        return {key: _write(key, value) for key, value in told.items()}
    where = f"see {HUB}/{base}" if base else "the checkpoint does not tell"
    return {"#license": f"# license: not known ({where}); write it here before you publish this"}


def _describe_base(bundle: Bundle) -> dict[str, str]:
    base = find_base(bundle)
    if not base:
        return {}
    items = {"base_model": _write("base_model", base)}
    if bundle.manifest.precision in ("int8", "int4"):
        items["base_model_relation"] = _write("base_model_relation", "quantized")
    return items


def _choose_library(bundle: Bundle) -> str:
    if find_transformersjs(bundle) is not None:
        return "transformers.js"
    if "genai_config.json" in bundle.manifest.files:
        return "onnxruntime-genai"
    return "openvino" if "openvino_model.xml" in bundle.manifest.files else "lfm2-deploy"


def _read_items(lines: list[str]) -> dict[str, str]:
    """Lines of YAML -> its keys' own lines; comments between keys are keys of their own."""
    items: dict[str, str] = {}
    key = ""
    for line in lines:
        found = _KEY.match(line)
        if found is not None:
            key = found[1]
        elif line.startswith("#"):
            key = "#license" if line.startswith("# license:") else line
        if key and key in items and found is None and not line.startswith("#"):
            items[key] += f"\n{line}"
        elif key:
            items[key] = line
    return {key: block.rstrip() for key, block in items.items()}


def _write(key: str, value: str) -> str:
    is_plain = _PLAIN.fullmatch(value) is not None and value.lower() not in _WORDS
    return f"{key}: {value if is_plain else json.dumps(value)}"


def _write_list(key: str, values: list[str]) -> str:
    return "\n".join([f"{key}:", *(f"- {_write('', value)[2:]}" for value in values)])
