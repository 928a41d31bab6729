"""A PEFT adapter folder -> `Adapter`: pairs of matrices and their scales.

Enters: adapter_config.json and adapter_model.safetensors. Leaves: for each tensor
to change, A [r, in], B [out, r] and the factor of B @ A. Knows nothing of the model.
An option that would make the sum mean something else is refused, and so is one
that is not known: weights merged wrongly look like weights merged rightly.

Source: peft 0.21, `tuners/lora/config.py` and `tuners/lora/layer.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from lfm2_deploy.checkpoint.tensor_file import DTYPE_BYTES, StoredTensor, read_header
from lfm2_deploy.errors import CheckpointError, SourceError
from lfm2_deploy.json_file import read_json_object

CONFIG_FILE, TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"
WAY_OUT = "merge it with PEFT (merge_and_unload, save_pretrained) and pass the merged folder"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
# Keys about training, or repeating what the tensors themselves say.
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "runtime_config", "peft_version", "ensure_weight_tying"),
    *("megatron_config", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
# Others, such as "pissa", also change the weights that the product is added to.
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")

# What a rank or an alpha can raise that is no number, or whose pattern is no pattern.
_UNUSABLE = (
    *(KeyError, TypeError, ValueError, AttributeError, ArithmeticError),
    *(re.error, RecursionError),
)


@dataclass(frozen=True, slots=True)
class LoraPair:
    """W becomes W + scale * B @ A; the file says A [r, in], B [out, r]."""

    a: StoredTensor
    b: StoredTensor
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: its folder and, by canonical name, what it adds."""

    folder: Path
    pairs: Mapping[str, LoraPair]


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's config and its tensors' names and shapes.

    Raises:
        SourceError: the folder or a file of it is absent, or holds only pickled weights.
        CheckpointError: an option that cannot be merged, or a pair without its other half.
    """
    raw = _read_config(folder)
    _refuse_unmergeable(raw, folder)
    halves: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in read_header(_find_tensors(folder)).items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise CheckpointError(
                f"adapter {folder} holds {key}, which is not half of a LoRA pair; {WAY_OUT}"
            )
        if tensor.dtype not in DTYPE_BYTES:
            raise CheckpointError(
                f"adapter {folder}: {key} is {tensor.dtype}, expected {', '.join(DTYPE_BYTES)}"
            )
        halves.setdefault(match["module"], {})[match["half"]] = tensor
    if not halves:
        raise CheckpointError(f"adapter {folder} holds no LoRA tensors; train or save it again")
    pairs = {f"{module}.weight": _pair(module, ab, raw, folder) for module, ab in halves.items()}
    return Adapter(folder, pairs)


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if not file.exists():
        raise SourceError(
            f"no {CONFIG_FILE} in {folder}: expected the folder of a PEFT LoRA adapter"
        )
    return read_json_object(file, SourceError, "save it again")


def _find_tensors(folder: Path) -> Path:
    file = folder / TENSOR_FILE
    if file.is_file():
        return file
    pickled = "; its adapter_model.bin is pickled, which is never opened"
    raise SourceError(
        f"adapter {folder} has no {TENSOR_FILE}"
        + (pickled if (folder / "adapter_model.bin").exists() else "")
        + "; save the adapter as safetensors"
    )


def _refuse_unmergeable(raw: Mapping[str, Any], folder: Path) -> None:
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(
            f"adapter {folder} has peft_type {raw.get('peft_type')!r}, expected 'LORA'; {WAY_OUT}"
        )
    neutral: Mapping[str, tuple[Any, ...]] = {
        "bias": (None, "none"),
        "init_lora_weights": _PLAIN_INITS,
    }
    for key, value in raw.items():
        if key in _READ or key in _WITHOUT_EFFECT or value in neutral.get(key, ()):
            continue
        if key in neutral or value not in (None, False, "", [], {}):
            raise CheckpointError(
                f"adapter {folder} sets {key} to {value!r}, which cannot be merged here; {WAY_OUT}"
            )


def _pair(
    module: str, halves: Mapping[str, StoredTensor], raw: Mapping[str, Any], folder: Path
) -> LoraPair:
    for half in "AB":
        if half not in halves:
            raise CheckpointError(
                f"adapter {folder} lacks lora_{half} of {module}; save the adapter again"
            )
    try:
        rank = int(_look_up(raw, "r", "rank_pattern", module))
        alpha = float(_look_up(raw, "lora_alpha", "alpha_pattern", module))
        scale = alpha / (sqrt(rank) if raw.get("use_rslora") else rank)
    except _UNUSABLE as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} gives no usable rank and alpha for {module} "
            f"({type(error).__name__}: {error}); save the adapter again"
        ) from error
    return LoraPair(halves["A"], halves["B"], rank, scale)


def _look_up(raw: Mapping[str, Any], key: str, pattern_key: str, module: str) -> Any:
    """A module's own value where a pattern names it, else everyone's; matched as PEFT does."""
    for pattern, value in (raw.get(pattern_key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return raw[key]
