"""Get a value instead of text: python samples/structured.py BUNDLE "He sold me two horses."."""

import sys
from typing import Literal

from pydantic import BaseModel, Field

from lfm2_deploy import Engine, Grammar


class Sale(BaseModel, extra="forbid"):  # else the model may add what it likes
    what: Literal["horse", "house", "ship"]
    count: int = Field(ge=1, le=99)
    buyer: str = Field(max_length=20)


if len(sys.argv) != 3:
    sys.exit(__doc__)
bundle, text = sys.argv[1:]
with Engine.load(bundle) as engine:
    messages = [{"role": "user", "content": f"What was sold here? {text}"}]
    answer = engine.generate(messages, grammar=Grammar.json_schema(Sale.model_json_schema()))
sale = Sale.model_validate_json(answer.text)
print(f"A sale of {sale.count} x {sale.what} to {sale.buyer!r}, from {answer.text}")
