"""Prompt lookup: guesses of what comes next, from what came before.

Text often repeats itself: code that is edited, a document that is quoted, a list. Where
the last tokens occurred earlier, those that followed are proposed, and the model checks
them all in one call. `PromptLookup` guesses, `Pace` decides how many guesses pay.
Knows token ids and seconds, and nothing of sessions.

Source: prompt lookup decoding, Saxena 2023; transformers' `prompt_lookup_num_tokens`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Suffixes looked up, longest first: a longer match is a better guess.
_LONGEST, _SHORTEST = 4, 2
# Of earlier experience, how much each call leaves: about the last five calls count.
_KEPT = 0.8
# A guess must promise this much more than one token a call.
_GAIN = 1.05
# Cost of one token more in a call, as part of a call of one token, until it is measured.
_ASSUMED_SLOPE = 0.3


class PromptLookup:
    """Finds what followed the last tokens where they occurred before.

    Every run of 2 to 4 tokens leads to the place after its latest occurrence, so a look
    takes the same few steps however long the text is.

    Args:
        ids: the row so far.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        # The end of the row is entered one token late: it must not find itself.
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Take in tokens that were added to the row."""
        for token in ids:
            end = len(self._ids)
            for size in range(_SHORTEST, _LONGEST + 1):
                if end >= size:
                    self._places[tuple(self._ids[end - size :])] = end
            self._ids.append(token)

    def guess(self, most: int) -> list[int]:
        """At most `most` tokens that may follow; none where nothing matches."""
        for size in range(_LONGEST, _SHORTEST - 1, -1):
            if len(self._ids) < size:
                continue
            place = self._places.get(tuple(self._ids[-size:]))
            if place is not None:
                return self._continue_from(place, most)
        return []

    def _continue_from(self, place: int, most: int) -> list[int]:
        found = self._ids[place : place + most]
        # A match close to the end repeats: what it would add continues it.
        period = len(self._ids) - place
        while len(found) < most:
            found.append(found[len(found) - period])
        return found


class Pace:
    """How many guesses to check at once, from what calls cost and how many came true.

    Costs are this process's own measurements. Where guesses do not pay, none are checked;
    what they would have been is compared with the tokens that come anyway, which costs
    nothing, so it is known when they begin to come true.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._right, self._wrong = 1.0, 1.0

    def choose(self, most: int) -> int:
        """How many guesses to ask for, 0 to `most`."""
        chance = self._right / (self._right + self._wrong)
        gains = [_expect(chance, count) / self._cost(1 + count) for count in range(1, most + 1)]
        best = max(gains, default=0.0)
        return gains.index(best) + 1 if best >= _GAIN else 0

    def learn_cost(self, tokens: int, seconds: float) -> None:
        """A call of so many tokens took so long."""
        before = self._seconds.get(tokens, seconds)
        # Quick to believe that a call can be fast: a slow one was perhaps disturbed.
        weight = 0.5 if seconds < before else 0.1
        self._seconds[tokens] = before + weight * (seconds - before)

    def learn_outcome(self, guessed: int, right: int) -> None:
        """Of so many guesses, the first `right` came true."""
        self._right = _KEPT * self._right + right
        self._wrong = _KEPT * self._wrong + (right < guessed)

    def _cost(self, tokens: int) -> float:
        """Time of a call, in calls of one token."""
        single = self._seconds.get(1)
        if single is None or len(self._seconds) == 1:
            return 1 + _ASSUMED_SLOPE * (tokens - 1)
        nearest = min((n for n in self._seconds if n > 1), key=lambda n: abs(n - tokens))
        slope = max(0.0, self._seconds[nearest] / single - 1) / (nearest - 1)
        return 1 + slope * (tokens - 1)


def _expect(chance: float, guesses: int) -> float:
    """Tokens a call is expected to give, when each guess comes true with this chance."""
    if chance >= 1:
        return 1.0 + guesses
    return (1 - chance ** (guesses + 1)) / (1 - chance)
