"""optimum-onnx's export of an LFM2 model, done by this package: the folder it makes is a bundle.

What enters are the arguments of optimum-onnx 0.1's `main_export`, which `optimum-cli export onnx`
calls. What has a meaning for our graph is mapped, and what changes nothing is taken; whatever else
differs from its default is refused by name, before anything is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lfm2_deploy.config import DENSE, MOE
from lfm2_deploy.errors import ExportError, Lfm2DeployError
from lfm2_deploy.exporting import export
from lfm2_deploy.registry import find_target

MODEL_TYPES = (DENSE, MOE)
_TASK = "text-generation-with-past"
_PRECISIONS = {None: "fp32", "fp32": "fp32", "fp16": "fp16"}
# What `--model-kwargs` may hold, and the type of each.
_CUSTOM: Mapping[str, type] = {"precision": str, "context_length": int}

# Argument of `main_export` -> its default and why it has no meaning here.
_REFUSED: Mapping[str, tuple[Any, str]] = {
    "device": ("cpu", "the export runs on the CPU"),
    "optimize": (None, "the graph's operators are fused already"),
    "monolith": (False, "there is one graph in any case"),
    "atol": (None, "nothing is compared while exporting; `lfm2-deploy verify` does"),
    "pad_token_id": (None, "padding is told by the attention mask"),
    "subfolder": ("", "give the folder itself"),
    "force_download": (False, "remove the model from the Hub's cache instead"),
    "token": (None, "set HF_TOKEN instead"),
    "custom_onnx_configs": (None, "the graph is not made of one"),
    "fn_get_submodels": (None, "there is one graph"),
    "_variant": ("default", "there is one variant"),
    "no_dynamic_axes": (False, "`lfm2-deploy export --target npu` makes fixed shapes"),
    "do_constant_folding": (True, "nothing is left to fold"),
    "slim": (False, "nothing is left to slim"),
}  # fmt: skip
# What the command calls them.
_OPTIONS = {
    "_variant": "--variant",
    "do_constant_folding": "--no-constant-folding",
    "library_name": "--library-name",
    "model_kwargs": "--model-kwargs",
    "no_dynamic_axes": "--no-dynamic-axes",
}


def run_export_command(run: Callable[[], None]) -> None:
    """Run `optimum-cli export onnx`, with LFM2 among the models.

    Args:
        run: the command as optimum-onnx wrote it.

    Raises:
        SystemExit: with one line, where this package refuses or fails.
    """
    from lfm2_deploy.integrations.optimum import register

    register()
    try:
        run()
    except Lfm2DeployError as error:
        raise SystemExit(f"error: {error}") from error


@cache
def replace_main_export() -> Callable[..., None]:
    """Put a function in front of optimum-onnx's `main_export`, which gets what is not LFM2."""
    from optimum.exporters import onnx
    from optimum.exporters.onnx import __main__ as module

    others = module.main_export

    def main_export(model_name_or_path: str, output: str | Path, **options: Any) -> None:
        """As optimum-onnx's, with LFM2 among the models."""
        if _is_lfm2(str(model_name_or_path), options):
            export_lfm2(str(model_name_or_path), Path(output), options)
        else:
            others(model_name_or_path, output, **options)

    module.main_export = onnx.main_export = main_export
    return main_export


def _is_lfm2(model: str, options: Mapping[str, Any]) -> bool:
    found = read_model_type(model, options)
    # What is called so and cannot be read is an error of ours: in one line, whose fault it is.
    return found in MODEL_TYPES or (found is None and "lfm2" in model.lower())


def read_model_type(model: str, options: Mapping[str, Any]) -> str | None:
    """`model_type` of a folder's or Hub model's config.json; None where there is none to read."""
    from transformers import PretrainedConfig

    names = ("subfolder", "revision", "cache_dir", "token", "local_files_only")
    given = {name: options[name] for name in names if options.get(name) is not None}
    if options.get("library_name") not in (None, "transformers"):
        return None
    try:
        config, _ = PretrainedConfig.get_config_dict(model, **given)
    except Exception:  # optimum-onnx meets the same, and says so in its own words
        return None
    found: str | None = config.get("model_type")
    return found


def export_lfm2(model: str, out: Path, options: Mapping[str, Any]) -> None:
    """Export to `out` what optimum-onnx was asked to export.

    Args:
        model: folder or Hub id.
        out: the folder to make, absent or empty.
        options: further arguments of `main_export`.

    Raises:
        ExportError: an option has no meaning for LFM2, or `out` holds something.
        Lfm2DeployError: as `lfm2_deploy.export`.
    """
    _check_task(options.get("task", "auto"))
    for name, (default, why) in _REFUSED.items():
        _refuse_unless(options.get(name, default) == default, name, why)
    _check_shapes(options)
    _check_opset(options.get("opset"))
    if not Path(model).is_dir():
        _check_cache(options)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not empty; choose another folder, or remove it")
    revision = options.get("revision")
    export(
        model,
        out,
        target="cpu",
        revision=None if revision == "main" else revision,
        **_read_custom(options),
    )


def _refuse_unless(fits: bool, name: str, why: str) -> None:
    if not fits:
        option = _OPTIONS.get(name, f"--{name}")
        raise ExportError(f"{option} has no meaning for an LFM2 model: {why}; leave it out")


def _check_task(task: str) -> None:
    from optimum.exporters.tasks import TasksManager

    if task != "auto" and TasksManager.map_from_synonym(task) != _TASK:
        raise ExportError(
            f"task {task!r} is not one of an LFM2 model: the graph takes states in and gives them "
            f"out; choose --task {_TASK}"
        )


def _check_shapes(options: Mapping[str, Any]) -> None:
    from optimum.utils.input_generators import DEFAULT_DUMMY_SHAPES

    for name, default in DEFAULT_DUMMY_SHAPES.items():
        fits = options.get(name, default) == default
        _refuse_unless(fits, name, "it is traced without an example, and takes any size")


def _check_opset(opset: int | None) -> None:
    made = dict(find_target("cpu").opsets)[""]
    if opset not in (None, made):
        raise ExportError(
            f"an LFM2 graph has opset {made}, and --opset {opset} was asked for; leave it out"
        )


def _check_cache(options: Mapping[str, Any]) -> None:
    from huggingface_hub.constants import HF_HUB_OFFLINE, HUGGINGFACE_HUB_CACHE

    place = options.get("cache_dir") or HUGGINGFACE_HUB_CACHE
    fits = str(place) == str(HUGGINGFACE_HUB_CACHE)
    _refuse_unless(fits, "cache_dir", "set HF_HUB_CACHE instead")
    fits = HF_HUB_OFFLINE or not options.get("local_files_only", False)
    _refuse_unless(fits, "local_files_only", "set HF_HUB_OFFLINE=1 instead")


def _read_custom(options: Mapping[str, Any]) -> dict[str, Any]:
    """`precision`, and `context_length` where it is given, from --dtype and --model-kwargs."""
    dtype, custom = options.get("dtype"), dict(options.get("model_kwargs") or {})
    for name, value in custom.items():
        if name not in _CUSTOM or type(value) is not _CUSTOM[name]:
            raise ExportError(
                f"--model-kwargs holds {name!r}: {value!r}; of an LFM2 model it may hold "
                '"precision" ("fp32", "fp16", "int8" or "int4") and "context_length" (a number)'
            )
    if dtype not in _PRECISIONS:
        raise ExportError(f"--dtype {dtype} is not a precision of LFM2 graphs; choose fp32 or fp16")
    if dtype is not None and "precision" in custom:
        raise ExportError(
            f"--dtype {dtype} and a precision in --model-kwargs were given; choose one of them"
        )
    return {"precision": _PRECISIONS[dtype], **custom}
