"""Text is let through up to the first stop string, wherever it is cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lfm2_deploy.stopping import StopScanner


def scan(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    """What is shown after each piece, and at the end; and which stop matched."""
    scanner = StopScanner(stops)
    return [*(scanner.push(piece) for piece in pieces), scanner.flush()], scanner.matched


def expect(stops: list[str], text: str) -> tuple[str, str | None]:
    """The rule, written out: the first to be complete wins, of several the longest."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_text_without_stops_passes_at_once() -> None:
    assert scan([], ["Hel", "", "lo"]) == (["Hel", "", "lo", ""], None)


def test_text_that_begins_no_stop_passes_at_once() -> None:
    assert scan(["END"], ["Hello ", "world"]) == (["Hello ", "world", ""], None)


def test_stop_inside_a_piece_ends_the_text_before_it() -> None:
    assert scan(["END"], ["one END two", "three"]) == (["one ", "", ""], "END")


def test_stop_across_pieces_is_held_back_and_never_shown() -> None:
    assert scan(["END"], ["a E", "N", "D b"]) == (["a ", "", "", ""], "END")


def test_held_text_is_shown_once_it_is_no_stop() -> None:
    assert scan(["END"], ["a E", "N", "T b"]) == (["a ", "", "ENT b", ""], None)


def test_held_text_is_shown_at_the_end() -> None:
    assert scan(["END"], ["a EN"]) == (["a ", "EN"], None)


def test_partial_match_that_restarts_inside_itself_is_found() -> None:
    assert scan(["aab"], ["a", "a", "a", "b", "c"]) == (["", "", "a", "", "", ""], "aab")
    assert scan(["abac"], ["ab", "ab", "ac"]) == (["", "ab", "", ""], "abac")


def test_of_several_stops_the_first_to_be_complete_wins() -> None:
    assert scan(["wxyz", "xy"], ["vwxyz"]) == (["vw", ""], "xy")
    assert scan(["wxyz", "xy"], ["vw", "xy"]) == (["v", "w", ""], "xy")


def test_of_stops_complete_together_the_longest_wins() -> None:
    assert scan(["b", "ab"], ["xab"]) == (["x", ""], "ab")
    assert scan(["b", "ab"], ["xa", "b"]) == (["x", "", ""], "ab")


def test_stop_at_the_very_beginning_leaves_nothing() -> None:
    assert scan(["###"], ["#", "##", "#"]) == (["", "", "", ""], "###")


@pytest.mark.parametrize("stop", ["\n\n", "漢字", "🙂!", "<|im_end|>"])
def test_stop_cut_at_every_character_is_found(stop: str) -> None:
    shown, matched = scan([stop], list(f"text{stop}more"))
    assert "".join(shown) == "text"
    assert matched == stop


def test_cutting_never_matters() -> None:
    random = np.random.default_rng(0)
    words = ["".join(word) for n in (1, 2, 3) for word in itertools.product("ab", repeat=n)]
    matches = 0
    for _ in range(2000):
        stops = random.choice(words, size=random.integers(1, 4)).tolist()
        text = "".join(random.choice(list("abc"), size=12))
        cuts = [0, *sorted(random.integers(0, 13, size=4).tolist()), 12]
        shown, matched = scan(stops, [text[a:b] for a, b in itertools.pairwise(cuts)])
        assert ("".join(shown), matched) == expect(stops, text), (stops, text, cuts)
        matches += matched is not None
    assert 0 < matches < 2000


def test_shown_text_is_never_taken_back() -> None:
    random = np.random.default_rng(1)
    stops = ["aba", "bb", "cab"]
    for _ in range(500):
        text = "".join(random.choice(list("abc"), size=10))
        scanner, shown = StopScanner(stops), ""
        for character in text:
            shown += scanner.push(character)
            assert expect(stops, text)[0].startswith(shown)
            assert not any(stop in shown for stop in stops)
