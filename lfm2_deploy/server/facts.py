"""What a server tells of its model; gathered once, so that an unloaded model stays unloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model as it was when it was loaded.

    Args:
        device, runtime, driver, arithmetic: where and how it computes.
        context_length: most tokens of prompt and answer.
        precision: how its weights are stored; "" where that is not known.
        notes: what a user should know.
        chats, tools, reasoning: what its template can lay out.
        tokenizer: its own.
        capabilities: of its runtime, by name.
        defaults: how it samples where a request does not say.
    """

    device: str
    runtime: str
    driver: str
    arithmetic: str
    context_length: int
    precision: str
    notes: tuple[str, ...]
    chats: bool
    tools: bool
    reasoning: bool
    tokenizer: Tokenizer
    capabilities: dict[str, Any]
    defaults: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All that a client may see."""
        return {
            "device": self.device,
            "runtime": self.runtime,
            "driver": self.driver,
            "arithmetic": self.arithmetic,
            "context_length": self.context_length,
            "precision": self.precision,
            "notes": list(self.notes),
            "has_chat_template": self.chats,
            "supports_tools": self.tools,
            "supports_reasoning": self.reasoning,
            "capabilities": self.capabilities,
            "defaults": self.defaults,
        }


def gather_facts(model: LanguageModel, precision: str = "") -> ModelFacts:
    """Look at a loaded model.

    Args:
        model: the engine's.
        precision: as its bundle's manifest has it.
    """
    info, template = model.runtime.info, model.chat_template
    able, sampling = info.capabilities, model.defaults.sampling
    return ModelFacts(
        device=info.device,
        runtime=info.runtime,
        driver=info.driver,
        arithmetic=info.arithmetic,
        context_length=model.runtime.context_length,
        precision=precision,
        notes=(*info.notes, *model.remarks),
        chats=template is not None,
        tools=_mentions(template, "tools"),
        reasoning=_mentions(template, "think"),
        tokenizer=model.tokenizer,
        capabilities={name: getattr(able, name) for name in able.__slots__},
        defaults={name: getattr(sampling, name) for name in _TOLD if hasattr(sampling, name)},
    )


def _mentions(template: ChatTemplate | None, word: str) -> bool:
    # A template that does not name it cannot do anything with it.
    return template is not None and word in template.source


_TOLD = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
