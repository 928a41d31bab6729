"""How much is measured where nothing else is asked; the protocol is in `protocol`.

Imports nothing: `--help` tells these, and must not wait for numpy.
"""

from __future__ import annotations

# Windows, and tokens in each: as llama.cpp has them.
CHUNKS, QUICK_CHUNKS = 64, 4
LENGTH = 512
# Greedy texts, and tokens of each.
PROMPTS, QUICK_PROMPTS = 4, 2
GREEDY, QUICK_GREEDY = 64, 32
# Of the worst positions.
WORST = 5
