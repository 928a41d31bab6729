"""An image, or anything else that is not text, in a prompt: embeddings among tokens, by hand.

    python samples/image_prompt.py BUNDLE TEXT [ROWS.npy]

BUNDLE was exported with --inputs-embeds. TEXT holds <image>, whose place the rows of ROWS.npy
take: float32 [rows, width], as a vision tower's projector gives. Without it, random ones do.
"""

import sys
from collections.abc import Iterator

import numpy as np

import lfm2_deploy


def answer(model: lfm2_deploy.LanguageModel, text: str, rows: np.ndarray) -> Iterator[int]:
    """The likeliest tokens after a text with rows in place of <image>."""
    session = model.runtime.open(1, 512)
    before, _, after = text.partition("<image>")
    session.prefill([model.encode_prompt(before)])
    session.prefill_embeddings([rows])
    logits = session.prefill([model.tokenizer.encode(after, add_special_tokens=False)])
    for _ in range(24):
        token = int(logits[0].argmax())
        if token in model.runtime.config.eos_token_ids:
            return
        yield token
        logits = session.decode([token])


if len(sys.argv) < 3:
    sys.exit(__doc__)
_, bundle, text, *file = sys.argv
model = lfm2_deploy.load(bundle)
if not model.runtime.info.capabilities.takes_embeddings:
    sys.exit(f"{bundle} takes token ids only: export the model with --inputs-embeds")
shape = (16, model.runtime.config.hidden_size)
rows = np.load(file[0]) if file else np.random.default_rng(0).normal(size=shape)
print(f"{text} [{len(rows)} rows]:{model.tokenizer.decode(list(answer(model, text, rows)))}")
