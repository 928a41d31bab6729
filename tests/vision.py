"""Tiny vision-language models as transformers builds and saves them, and what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

from lfm2_deploy.contracts import FloatArray

IMAGE_TOKEN = 396
_VISION = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_patches": 16,
    "patch_size": 4,
}


def make_vision_model(text: Mapping[str, Any]) -> Any:
    """A whole model around a text model of this config."""
    config = Lfm2VlConfig(
        text_config=dict(text),
        vision_config=dict(_VISION),
        projector_hidden_size=32,
        image_token_id=IMAGE_TOKEN,
    )
    return Lfm2VlForConditionalGeneration(config).eval()


@torch.no_grad()
def embed(model: Any, ids: Sequence[int]) -> FloatArray:
    """Rows [S, H] of the model's own embedding table."""
    rows: FloatArray = model.get_input_embeddings()(torch.tensor(list(ids))).numpy()
    return rows


@torch.no_grad()
def run_text_part(model: Any, embeddings: FloatArray) -> FloatArray:
    """Logits [S, V] of the language model and head over embeddings [S, H], without a cache."""
    hidden = model.model.language_model(
        inputs_embeds=torch.from_numpy(embeddings)[None], use_cache=False
    ).last_hidden_state
    logits: FloatArray = model.lm_head(hidden)[0].numpy()
    return logits


@torch.no_grad()
def look_at(model: Any, ids: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """A random image's embeddings [4, H], and the whole model's logits [S, V] over it.

    Args:
        model: the whole model.
        ids: a prompt with `IMAGE_TOKEN` four times.
    """
    pixels = torch.randn(1, 16, 48, generator=torch.Generator().manual_seed(5))
    image = {
        "pixel_values": pixels,
        "spatial_shapes": torch.tensor([[4, 4]]),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
    }
    seen = model.model.get_image_features(**image).pooler_output[0]
    whole = model(input_ids=torch.tensor([list(ids)]), **image, use_cache=False)
    return seen.numpy(), whole.logits[0].numpy()
