"""Names of a vision or audio checkpoint -> those of its text part, by canonical name.

Enters: stored names. Leaves: for each tensor of the text part the name a text model's would have,
and what was left out on purpose. A name of neither kind is nobody's, and is refused: it could be
a part of the text model that a newer version calls otherwise.

Vision, transformers 5.24:  model.language_model.*, lm_head.weight
        of other tools:     language_model.model.*, language_model.lm_head.weight
Audio, liquid-audio:        lfm.*; the head is the embedding table
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lfm2_deploy.errors import CheckpointError
from lfm2_deploy.model_parts import AUDIO, VISION, Whole
from lfm2_deploy.weights import HEAD

# (prefix of a stored name, what stands for it in a text model's), tried in order.
_TEXT: Mapping[str, tuple[tuple[str, str], ...]] = {
    VISION: (
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        (f"language_model.{HEAD}", HEAD),
        (HEAD, HEAD),
    ),
    AUDIO: (("lfm.", "model."), ("model.language_model.", "model."), (HEAD, HEAD)),
}
_LEFT_OUT = {
    VISION: re.compile(r"(model\.)?(?P<part>vision_tower|multi_modal_projector)\."),
    AUDIO: re.compile(
        r"(?P<part>conformer|audio_adapter|audio_embedding|depthformer|depth_linear"
        r"|depth_embeddings|codebook_offsets|audio_loss_weights)(\.|$)"
    ),
}


@dataclass(frozen=True, slots=True)
class TextTensors:
    """What a checkpoint holds of the text part.

    Args:
        names: canonical name -> stored name.
        left_out: part of the whole model -> how many of its tensors are not taken.
    """

    names: Mapping[str, str]
    left_out: Mapping[str, int]

    @property
    def note(self) -> str:
        """What was left out, for people; "" for nothing."""
        parts = [
            f"{part} ({count} tensor{'' if count == 1 else 's'})"
            for part, count in sorted(self.left_out.items())
        ]
        return f"only the text part is taken, without {', '.join(parts)}" if parts else ""


def find_text_tensors(stored: Iterable[str], whole: Whole) -> TextTensors:
    """Sort a checkpoint's names.

    Args:
        stored: names of all tensors of all files.
        whole: what the checkpoint is of.

    Raises:
        CheckpointError: a name is of no part that is known, or two are of the same tensor.
    """
    names: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    for name in stored:
        canonical = name_text_tensor(name, whole)
        if canonical is None:
            found = _LEFT_OUT[whole.kind].match(name)
            if found is None:
                raise CheckpointError(
                    f"tensor {name} is of no known part of a '{whole.name}' model: expected "
                    f"{_list_prefixes(whole)}; update lfm2-deploy, or save the model with "
                    "transformers 5.24"
                )
            left_out[found["part"]] += 1
        elif canonical in names:
            raise CheckpointError(
                f"{names[canonical]} and {name} are the same tensor of the text part; download the "
                "checkpoint again into an empty folder"
            )
        else:
            names[canonical] = name
    return TextTensors(names, left_out)


def name_text_tensor(stored: str, whole: Whole) -> str | None:
    """What a text model calls a tensor; None for one of another part."""
    for prefix, replacement in _TEXT[whole.kind]:
        if stored.startswith(prefix):
            return replacement + stored.removeprefix(prefix)
    return None


def _list_prefixes(whole: Whole) -> str:
    prefixes = [
        prefix if prefix.endswith("weight") else f"{prefix}*" for prefix, _ in _TEXT[whole.kind]
    ]
    return f"{', '.join(prefixes)}, or a vision or audio part's name"
