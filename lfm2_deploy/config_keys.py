"""Typed access to the JSON object of a config; every failure names the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lfm2_deploy.errors import ConfigError, UnsupportedModelError

# Keys that would change the arithmetic if they held anything but the value beside them.
_FIXED = {
    "rope_scaling": None,
    "sliding_window": None,
    "quantization_config": None,
    "attention_bias": False,
    "mlp_bias": False,
    "conv_bias": False,
    "block_use_swiglu": True,
    "use_pos_enc": True,
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
}
# Far above any model of the family; a hostile file must not ask for all memory.
_MAXIMA = {
    "num_hidden_layers": 1024,
    "num_experts": 4096,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**24,
    "conv_L_cache": 1024,
}
WIDEST = 2**20


class ConfigKeys:
    """One config's keys, and the assumptions made where a key is absent.

    Every method raises ConfigError where a value is missing, mistyped or out of range.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.assumptions: list[str] = []

    def present(self, key: str) -> Any:
        """A value that must be there."""
        if self.raw.get(key) is None:
            raise ConfigError(f"config.json has no '{key}', which an LFM2 model needs")
        return self.raw[key]

    def integer(self, key: str, minimum: int = 1) -> int:
        """An integer of at least `minimum`, and of a size that some model could have."""
        value = self.present(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ConfigError(f"config.json: {key} is {value!r}, expected an integer >= {minimum}")
        most = _MAXIMA.get(key, WIDEST)
        if value > most:
            raise ConfigError(f"config.json: {key} is above {most:,}, which no LFM2 model has")
        return value

    def optional_integer(self, key: str) -> int | None:
        """As `integer`, or None where the key is absent."""
        return None if self.raw.get(key) is None else self.integer(key)

    def optional_token(self, key: str) -> int | None:
        """As `token`, or None where the key is absent."""
        value = self.raw.get(key)
        return None if value is None else self.token(key, value)

    def token(self, key: str, value: Any) -> int:
        """Check a token id against the vocabulary."""
        vocab = self.integer("vocab_size")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab:
            raise ConfigError(f"config.json: {key} is {value!r}, expected a token below {vocab}")
        return value

    def optional_list(self, key: str) -> list[Any] | None:
        """A list, or None where the key is absent."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, list | tuple):
            raise ConfigError(f"config.json: {key} is {value!r}, expected a list")
        return None if value is None else list(value)

    def number(self, key: str) -> float:
        """A finite number above 0."""
        value = self.present(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"config.json: {key} is {value!r}, expected a number above 0")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not 0 < number < math.inf:  # NaN is neither
            raise ConfigError(f"config.json: {key} is {number}, expected a number above 0")
        return number

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self.present(key)
        if not isinstance(value, bool):
            raise ConfigError(f"config.json: {key} is {value!r}, expected true or false")
        return value

    def agreeing_integer(self, key: str, *aliases: str) -> int:
        """As `integer`; other names of the same thing, where present, must agree."""
        value = self.integer(key)
        self._agree(key, value, aliases)
        return value

    def agreeing_number(self, key: str, *aliases: str) -> float:
        """As `number`; other names of the same thing, where present, must agree."""
        value = self.number(key)
        self._agree(key, value, aliases)
        return value

    def _agree(self, key: str, value: float, aliases: tuple[str, ...]) -> None:
        for alias in aliases:
            if self.raw.get(alias, value) != value:
                raise ConfigError(
                    f"config.json: {key} {value} contradicts {alias} {self.raw[alias]}"
                )

    def refuse_changed_arithmetic(self) -> None:
        """Refuse keys that would change what the model computes."""
        for key, expected in _FIXED.items():
            if key in self.raw and self.raw[key] not in (expected, None):
                raise UnsupportedModelError(
                    f"config.json: {key} is {self.raw[key]!r}; only {expected!r} is supported, "
                    "as in every released LFM2 model"
                )
