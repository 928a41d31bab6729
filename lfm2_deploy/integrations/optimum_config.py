"""What transformers and optimum's `TasksManager` are told of LFM2, so that they ask us the rest."""

from __future__ import annotations

from typing import Any, NoReturn

from optimum.exporters.onnx.config import TextDecoderOnnxConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils.normalized_config import NormalizedTextConfig
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lfm2_deploy.config import DENSE, MOE, parse_config
from lfm2_deploy.errors import ExportError
from lfm2_deploy.states import list_states

TASK = "text-generation-with-past"


class Lfm2MoeConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """config.json as it is, for transformers before 5.0, which has no `lfm2_moe`.

    optimum-onnx 0.1.0 takes no later one. It goes when optimum-onnx does.
    """

    model_type = MOE


class Lfm2OnnxConfig(TextDecoderOnnxConfig):  # type: ignore[misc]
    """Inputs and outputs of our graph, and nothing that would let another exporter trace LFM2."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    DEFAULT_ONNX_OPSET = 21

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Names -> dynamic axes."""
        states = list_states(parse_config(self._config.to_dict()))
        return {
            "input_ids": {0: "batch_size", 1: "sequence_length"},
            "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
            "logits_to_keep": {},
            **{state.input: _find_axes(state.shape) for state in states},
        }

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Names -> dynamic axes."""
        states = list_states(parse_config(self._config.to_dict()))
        present = {state.output: _find_axes(state.shape) for state in states}
        return {"logits": {0: "batch_size", 1: "logits_to_keep"}, **present}

    def patch_model_for_export(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refuse a model that is loaded already: weights are read from the checkpoint's files.

        Raises:
            ExportError: always.
        """
        raise ExportError(
            "an LFM2 model that is loaded cannot be exported: give main_export or optimum-cli its "
            "folder or Hub id"
        )


def _find_axes(shape: tuple[int | str, ...]) -> dict[int, str]:
    return {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}


def register_configs() -> None:
    """Tell the `TasksManager` of both model types, and transformers of the one it lacks."""
    register_moe_config()
    register_onnx = TasksManager.create_register("onnx")
    for model_type in (DENSE, MOE):
        register_onnx(model_type, TASK)(Lfm2OnnxConfig)


def register_moe_config() -> None:
    """Let `AutoConfig` read a mixture's config.json, where transformers does not."""
    if MOE not in CONFIG_MAPPING:
        AutoConfig.register(MOE, Lfm2MoeConfig)
