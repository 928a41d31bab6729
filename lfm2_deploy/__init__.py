"""Export Liquid AI's LFM2 models and run them on laptops.

    import lfm2_deploy

    lfm2_deploy.export("LiquidAI/LFM2-350M", "lfm2-350m", precision="int4")
    model = lfm2_deploy.load("lfm2-350m")
    print(model.generate("The capital of France is", max_new_tokens=20).text)

Names are imported when first used, so importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfm2_deploy.answers.events import (
        Answer,
        Finished,
        ReasoningDelta,
        TextDelta,
        ToolCall,
        ToolCallArguments,
        ToolCallStarted,
    )
    from lfm2_deploy.api import compare_models, load, prepare, verify
    from lfm2_deploy.bundle import Bundle, open_bundle
    from lfm2_deploy.completion import Completion, TextChunk
    from lfm2_deploy.errors import Lfm2DeployError, QueueFullError
    from lfm2_deploy.exporting import export
    from lfm2_deploy.generate import LanguageModel
    from lfm2_deploy.grammar import Grammar
    from lfm2_deploy.importing.run import import_model
    from lfm2_deploy.options import GenerationOptions
    from lfm2_deploy.prefix_store import PrefixStore
    from lfm2_deploy.prompt_cache import PromptCache
    from lfm2_deploy.publish.push import push
    from lfm2_deploy.sampling import SamplingOptions
    from lfm2_deploy.serving.engine import Engine
    from lfm2_deploy.serving.limits import EngineLimits, LoadProgress
    from lfm2_deploy.serving.streams import AsyncStream, Stream
    from lfm2_deploy.store.model_store import ModelStore

_HOMES = {
    "Answer": "answers.events",
    "AsyncStream": "serving.streams",
    "Bundle": "bundle",
    "Completion": "completion",
    "Engine": "serving.engine",
    "EngineLimits": "serving.limits",
    "Finished": "answers.events",
    "GenerationOptions": "options",
    "Grammar": "grammar",
    "LanguageModel": "generate",
    "Lfm2DeployError": "errors",
    "LoadProgress": "serving.limits",
    "ModelStore": "store.model_store",
    "PrefixStore": "prefix_store",
    "PromptCache": "prompt_cache",
    "QueueFullError": "errors",
    "ReasoningDelta": "answers.events",
    "SamplingOptions": "sampling",
    "Stream": "serving.streams",
    "TextChunk": "completion",
    "TextDelta": "answers.events",
    "ToolCall": "answers.events",
    "ToolCallArguments": "answers.events",
    "ToolCallStarted": "answers.events",
    "compare_models": "api",
    "export": "exporting",
    "import_model": "importing.run",
    "load": "api",
    "open_bundle": "bundle",
    "prepare": "api",
    "push": "publish.push",
    "verify": "api",
}

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lfm2_deploy' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"lfm2_deploy.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
