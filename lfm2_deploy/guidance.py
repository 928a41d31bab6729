"""A grammar and a tokenizer -> which tokens may come next, by llguidance.

Enters: a `Grammar`, from anyone. Leaves: a `GrammarConstraint` that masks one row's logits. Time
and memory are bounded, nothing is read from disk or network, and whatever a grammar does wrong
is a `GrammarError`. Loaded on demand, since llguidance is an optional package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import GrammarError
from lfm2_deploy.grammar import Grammar
from lfm2_deploy.tokenizer import Tokenizer

# What is forced would be written out in full, however long: 2 ** 30 letters hang it. It is a
# matter of speed, and only for those who append it in one piece.
_HEADER = '%llguidance {"no_forcing": true}\n'
# JSON in one line, as models are shown tools and write calls: weak ones spend tokens on blanks
# where they are allowed any. Not lenient: what is not followed is refused, not passed over.
_JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
}
# Below llguidance's defaults, which let one expression take 200 MB.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=50_000,
    max_lexer_states=20_000,
    max_grammar_size=50_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)
_MOST_WORDS = 240

# One for each tokenizer, as long as that lives: building it takes a quarter of a second.
_tokenizers: WeakKeyDictionary[Tokenizer, LLTokenizer] = WeakKeyDictionary()
_building = Lock()


class GrammarConstraint:
    """Keeps one answer within a grammar; see `constraints.Constraint`.

    Where the grammar is complete, end-of-turn tokens may come, and nowhere else. Where nothing
    else can follow, they are all that may. Not for several rows: each has a `copy` of its own.
    """

    def __init__(
        self, matcher: LLMatcher, width: int, eos: int, end_ids: NDArray[np.int64]
    ) -> None:
        """Begin an answer; `compile_grammar` does.

        Args:
            matcher: at the beginning of the grammar.
            width: ids that the tokenizer has.
            eos: the token that the matcher itself takes for the end.
            end_ids: the model's own.
        """
        self._matcher = matcher
        self._width, self._eos, self._end_ids = width, eos, end_ids
        self._ended = False

    @property
    def is_finished(self) -> bool:
        """Whether an end-of-turn token was accepted."""
        return self._ended

    def mask(self, logits: FloatArray) -> FloatArray:
        """Forbid what cannot come next.

        Args:
            logits: float32 [V]; not changed. V may be wider than the tokenizer, whose ids alone
                are allowed.

        Returns:
            float32 [V]; forbidden tokens are -inf.

        Raises:
            GrammarError: following the grammar has become too much work.
        """
        allowed = self.allowed()[: len(logits)]
        if not allowed.any():
            raise GrammarError("no token of this model can follow in this grammar: change it")
        masked = np.full_like(logits, -np.inf)
        np.copyto(masked[: len(allowed)], logits[: len(allowed)], where=allowed)
        return masked

    def allowed(self) -> NDArray[np.bool_]:
        """Bool [width]: which tokens may come next.

        Raises:
            GrammarError: following the grammar has become too much work.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        _check(self._matcher, "the grammar cannot be followed further")
        allowed = np.unpackbits(bits, count=self._width, bitorder="little").view(np.bool_)
        allowed[self._eos] = False
        allowed[self._end_ids] = self._matcher.is_accepting()
        return allowed

    def accept(self, token_id: int) -> None:
        """Go on past a token that `mask` allowed.

        Raises:
            GrammarError: it cannot come here.
        """
        if token_id in self._end_ids and self._matcher.is_accepting():
            self._ended = True
        elif not self._matcher.consume_token(token_id):
            _check(self._matcher, f"token {token_id} cannot come here")

    def copy(self) -> GrammarConstraint:
        """Another one at the same place, which goes its own way."""
        matcher = self._matcher.deep_copy()
        return GrammarConstraint(matcher, self._width, self._eos, self._end_ids)


def compile_grammar(
    grammar: Grammar, tokenizer: Tokenizer, end_ids: Collection[int]
) -> GrammarConstraint:
    """Make what keeps one answer within a grammar.

    Args:
        grammar: what the answer must follow.
        tokenizer: the model's.
        end_ids: the model's end-of-turn tokens; any of them may end the answer.

    Raises:
        GrammarError: it is not understood, too large, or no text follows it.
    """
    known = _tokenizer_for(tokenizer)
    within = [i for i in end_ids if 0 <= i < known.vocab_size]
    if not within:
        raise GrammarError(
            "the tokenizer has none of the model's end-of-turn tokens, and an answer that "
            "follows a grammar must end with one: give eos_token_ids"
        )
    failed = f"the {grammar.name} cannot be used"
    matcher = LLMatcher(known, _translate(grammar), log_level=0, limits=_LIMITS)
    _check(matcher, failed)
    constraint = GrammarConstraint(
        matcher, known.vocab_size, known.eos_token, np.array(within, np.int64)
    )
    _probe(constraint, failed)
    return constraint


def check_grammar(grammar: Grammar) -> None:
    """See what is wrong with a grammar whatever the model; the rest shows when it is compiled.

    Raises:
        GrammarError: it is not understood, or too large.
    """
    told = LLMatcher.validate_grammar(_translate(grammar), None, limits=_LIMITS)
    if told:
        raise GrammarError(f"the {grammar.name} cannot be used: {_shorten(told)}")


def _probe(constraint: GrammarConstraint, failed: str) -> None:
    """Look two tokens ahead: what is too large mostly shows there, before an answer begins."""
    try:
        first = np.flatnonzero(constraint.allowed())
        ahead = constraint.copy()
        if len(first):
            ahead.accept(int(first[0]))
            if not ahead.is_finished:
                ahead.allowed()
    except GrammarError as error:
        raise GrammarError(f"{failed}: {str(error).partition(': ')[2]}") from error
    if not len(first):
        raise GrammarError(f"{failed}: no text follows it; change it")


def _translate(grammar: Grammar) -> str:
    """The grammar as llguidance takes it, all kinds as Lark."""
    if grammar.kind == "lark":
        source = grammar.source
    elif grammar.kind == "regex":
        # It knows what must be escaped.
        record = json.loads(LLMatcher.grammar_from_regex(grammar.source))
        source = record["grammars"][0]["lark_grammar"]
    else:
        schema = json.loads(grammar.source or '{"type": "object"}')
        source = "start: %json " + json.dumps({**schema, "x-guidance": _JSON_OPTIONS})
    return LLMatcher.grammar_from_lark(_HEADER + source)


def _tokenizer_for(tokenizer: Tokenizer) -> LLTokenizer:
    with _building:
        found = _tokenizers.get(tokenizer)
        if found is None:
            # Which token ends an answer is not its business: `GrammarConstraint` sees to that.
            found = LLTokenizer(tokenizer.to_json(), n_vocab=tokenizer.vocab_size)
            _tokenizers[tokenizer] = found
    return found


def _check(matcher: LLMatcher, failed: str) -> None:
    if matcher.is_error():
        raise GrammarError(f"{failed}: {_shorten(matcher.get_error())}")


def _shorten(message: str) -> str:
    """What is wrong, in one line, out of a report of several lines with an excerpt."""
    if message.startswith("NoExtension"):
        return "no text follows it; change it"
    message = re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", message)
    outside = re.search(r"Resource '(?:json-schema:///)?(.*?)' is not present", message)
    if outside:
        return f"{outside[1]!r} lies outside of it, and nothing is fetched; put it under $defs"
    # From there on, all special tokens of the tokenizer are listed.
    message = message.replace("<non-verbose/>", "").partition("; following special tokens")[0]
    named = re.search(r"^error: (.+)$", message, re.MULTILINE)
    # From the excerpt of the source on, the report is for wide screens.
    words = named[1] if named else re.split(r"\n\s+\d+ \| ", message)[0]
    words = " ".join(words.split())
    return words if len(words) <= _MOST_WORDS else words[:_MOST_WORDS] + "..."
