"""LFM2 for optimum-onnx: `register()` once, and its own functions and classes know LFM2.

What enters are optimum-onnx's calls, what leaves are our bundles, and models over them. This knows
optimum-onnx 0.1, which has no registry of models by type: `register` puts functions of ours in
front of two of its own, which pass on whatever is not LFM2.
"""

from __future__ import annotations

from functools import cache
from typing import Any

try:
    import optimum.onnxruntime.modeling_decoder as modeling_decoder
    from optimum.onnxruntime import ORTModelForCausalLM
except ImportError as error:
    raise ImportError(
        f"optimum-onnx is not installed, or does not load ({error}): "
        "pip install 'lfm2-deploy[optimum]', in an environment of its own"
    ) from error

from lfm2_deploy.integrations.optimum_config import register_configs
from lfm2_deploy.integrations.optimum_export import MODEL_TYPES, replace_main_export
from lfm2_deploy.integrations.optimum_model import Lfm2ORTModelForCausalLM

__all__ = ["Lfm2ORTModelForCausalLM", "register"]


@cache
def register() -> None:
    """Make optimum-onnx know LFM2, in this process; a second call does nothing.

    Afterwards `ORTModelForCausalLM.from_pretrained` gives an `Lfm2ORTModelForCausalLM` where a
    folder holds LFM2, `main_export` exports it through this package, and `TasksManager` lists it.
    """
    register_configs()
    modeling_decoder.main_export = replace_main_export()
    load = ORTModelForCausalLM._from_pretrained.__func__

    def load_lfm2(cls: type[Any], /, model_id: Any, config: Any, **options: Any) -> Any:
        """As it was, but for LFM2 where no other class was asked for."""
        ours = cls is ORTModelForCausalLM and config.model_type in MODEL_TYPES
        return load(Lfm2ORTModelForCausalLM if ours else cls, model_id, config, **options)

    ORTModelForCausalLM._from_pretrained = classmethod(load_lfm2)
