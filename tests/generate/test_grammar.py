"""Answers that follow a grammar, of a real model and of scripted ones."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLTokenizer

from lfm2_deploy import load
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import GenerationError, GrammarError, RuntimeUnavailableError
from lfm2_deploy.exporting import export
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.grammar import Grammar
from lfm2_deploy.guidance import GrammarConstraint, compile_grammar
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.prompt_cache import PromptCache
from lfm2_deploy.registry import GRAMMAR_COMPILER
from lfm2_deploy.row_choice import RowChooser, list_end_ids
from lfm2_deploy.speculation import Pace
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.fake import hash_logits

from .scripts import EOS, OTHER_EOS, VOCAB, Script, build

PERSON: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
        "home": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]},
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"lat": {"type": "number", "minimum": -90, "maximum": 90}},
            "required": ["lat"],
            "additionalProperties": False,
        }
    },
}


@pytest.fixture(scope="module")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(str(DEMO_MODEL), tmp_path_factory.mktemp("bundles") / "demo", precision="int4")


@pytest.fixture(scope="module")
def demo(demo_bundle: Bundle) -> LanguageModel:
    return load(demo_bundle.path, threads=1)


def spell(constraint: GrammarConstraint, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text, in the tokenizer's own tokens, is allowed and may end."""
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        if not constraint.allowed()[token_id]:
            return False
        constraint.accept(token_id)
    return bool(constraint.allowed()[EOS])


def matches(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    return spell(compile_grammar(grammar, tokenizer, [EOS]), tokenizer, text)


# Answers of a real model.


@pytest.mark.parametrize("seed", range(6))
def test_answer_of_a_schema_always_parses_and_is_valid(demo: LanguageModel, seed: int) -> None:
    answer = demo.generate(
        "Here is a person:",
        grammar=Grammar.json_schema(PERSON),
        temperature=1.0 + seed / 2,
        seed=seed,
        max_new_tokens=400,
    )
    assert answer.finish_reason == "stop"
    jsonschema.validate(json.loads(answer.text), PERSON)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 2.0, "top_k": 3}])
def test_filters_choose_among_what_is_allowed(demo: LanguageModel, options: Any) -> None:
    # Alone, the three likeliest tokens of this prompt are no digits.
    answer = demo.generate("Once upon a", grammar=Grammar.regex("[0-9]{4}"), seed=1, **options)
    assert re.fullmatch("[0-9]{4}", answer.text)


def test_rows_follow_the_grammar_each_at_its_own_place(demo: LanguageModel) -> None:
    prompts = ["The year is", "In the", "My fellow Americans, you were born in the year of"]
    options = GenerationOptions(grammar=Grammar.lark('start: "(" /[0-9]+/ ")" /[a-z]{0,9}/ "."'))
    options = options.with_overrides(temperature=1.5, seed=5, max_new_tokens=60)
    together = demo.generate_batch(prompts, options)
    assert [answer.text for answer in together] == [
        demo.generate(prompt, options).text for prompt in prompts
    ]
    # A row that is cut at 60 tokens, should there be one, is still a beginning.
    assert all(re.match(r"\([0-9]+", answer.text) for answer in together)
    assert len({answer.text for answer in together}) == 3


def test_answer_cut_at_its_limit_says_so(demo: LanguageModel) -> None:
    answer = demo.generate("x", grammar=Grammar.regex("[a-z ]{500}"), max_new_tokens=5)
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == 5


def test_looking_ahead_gives_the_same_constrained_answer(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Calls cost what is assumed before any is measured, however fast this machine is.
    monkeypatch.setattr(Pace, "learn_cost", lambda self, tokens, seconds: None)
    grammar = Grammar.regex("(zq){15}[a-z]{0,9}")
    runs = [
        build(tokenizer, hash_logits(VOCAB)).generate(
            [1, 100], grammar=grammar, temperature=0.8, seed=3, prompt_lookup_num_tokens=ahead
        )
        for ahead in (0, 5)
    ]
    assert runs[1].guessed_right > 10
    # The grammar begins otherwise than it goes on, so some guesses are wrong, too.
    assert runs[1].guessed_tokens > runs[1].guessed_right
    assert runs[0].token_ids == runs[1].token_ids
    assert runs[0].text.startswith("zq" * 15)


def test_prompt_cache_serves_constrained_answers(demo: LanguageModel) -> None:
    cache = PromptCache(demo.runtime)
    for pattern in ("[0-9]{3}", "[A-Z]{3}"):
        answer = demo.generate("Hello there", cache=cache, grammar=Grammar.regex(pattern))
        assert re.fullmatch(pattern, answer.text)


# What may come, and when an answer ends.


def test_masked_logits_are_the_models_or_minus_infinity(tokenizer: Tokenizer) -> None:
    constraint = compile_grammar(Grammar.regex("[ab]c"), tokenizer, [EOS])
    logits = np.arange(VOCAB + 100, dtype=np.float32)  # wider than the tokenizer
    before = logits.copy()
    masked = constraint.mask(logits)
    kept = {tokenizer.token_text(int(i)) for i in np.flatnonzero(masked != -np.inf)}
    assert kept <= {"a", "b", "ac", "bc"}
    assert kept >= {"a", "b"}
    finite = masked != -np.inf
    np.testing.assert_array_equal(masked[finite], logits[finite])
    np.testing.assert_array_equal(logits, before)
    assert masked.dtype == np.float32
    assert masked.shape == logits.shape


def test_any_of_several_end_tokens_ends_a_complete_answer(tokenizer: Tokenizer) -> None:
    for end in (EOS, OTHER_EOS, 500):  # the last is a plain token
        constraint = compile_grammar(Grammar.regex("ab?"), tokenizer, [EOS, OTHER_EOS, 500])
        assert not constraint.allowed()[[EOS, OTHER_EOS, 500]].any()
        constraint.accept(tokenizer.encode("a", add_special_tokens=False)[0])
        assert constraint.allowed()[[EOS, OTHER_EOS, 500]].all()
        assert not constraint.is_finished
        constraint.accept(end)
        assert constraint.is_finished


def test_only_ends_are_allowed_where_nothing_else_can_follow(tokenizer: Tokenizer) -> None:
    constraint = compile_grammar(Grammar.regex("ab"), tokenizer, [EOS, OTHER_EOS])
    assert spell(constraint, tokenizer, "ab")
    assert np.flatnonzero(constraint.allowed()).tolist() == sorted([EOS, OTHER_EOS])


def test_llguidances_own_end_is_not_the_models(tokenizer: Tokenizer) -> None:
    # It takes <|endoftext|> for one; a model that does not end with it must not be offered it.
    constraint = compile_grammar(Grammar.regex("a"), tokenizer, [EOS])
    assert spell(constraint, tokenizer, "a")
    assert np.flatnonzero(constraint.allowed()).tolist() == [EOS]


def test_ignored_end_tokens_still_end_a_grammar(tokenizer: Tokenizer) -> None:
    model = build(tokenizer, hash_logits(VOCAB))
    answer = model.generate([1, 100], grammar=Grammar.regex("abc"), ignore_eos=True)
    assert (answer.text, answer.finish_reason) == ("abc", "stop")


def test_end_is_taken_as_soon_as_the_model_likes(script: Script, tokenizer: Tokenizer) -> None:
    model = script("ab")
    answer = model.generate([1, 100, 101, 102], grammar=Grammar.regex("[ab]+"))
    assert (answer.text, answer.finish_reason, answer.token_ids[-1]) == ("ab", "stop", EOS)


def test_stop_string_cuts_a_constrained_answer(script: Script) -> None:
    answer = script("abab").generate([1, 100, 101, 102], grammar=Grammar.regex("[ab]+"), stop="ba")
    assert (answer.text, answer.stop) == ("a", "ba")


def test_logprobs_are_the_models_own_whatever_is_allowed(tokenizer: Tokenizer) -> None:
    model = build(tokenizer, hash_logits(VOCAB))
    free = model.generate([1, 100], logprobs=1, max_new_tokens=1)
    bound = model.generate([1, 100], logprobs=1, max_new_tokens=1, grammar=Grammar.regex("[0-9]"))
    assert free.logprobs is not None
    assert bound.logprobs is not None
    assert bound.logprobs[0].top == free.logprobs[0].top
    assert bound.token_ids != free.token_ids


def test_llguidance_takes_each_token_for_the_bytes_that_it_decodes_to(tokenizer: Tokenizer) -> None:
    # Byte 0xFF is in no UTF-8 text; llguidance marks special tokens by it.
    theirs = LLTokenizer(tokenizer.to_json(), n_vocab=tokenizer.vocab_size)
    other = [i for i in range(VOCAB) if theirs.decode_bytes([i]) != tokenizer.token_bytes(i)]
    assert [tokenizer.token_bytes(i) for i in other] == [b"\xff"]


def test_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    constraint = compile_grammar(Grammar.regex("(.|\n)*"), tokenizer, [EOS])
    allowed = {*np.flatnonzero(constraint.allowed()).tolist()}
    assert allowed & tokenizer.special_ids == {EOS}


def test_lark_may_name_a_special_token(tokenizer: Tokenizer) -> None:
    marker = next(tokenizer.token_text(i) for i in sorted(tokenizer.special_ids - {EOS, 0, 1, 2}))
    grammar = Grammar.lark(f'start: {marker} "a"')
    assert matches(grammar, tokenizer, f"{marker}a")
    assert not matches(grammar, tokenizer, "a")


def test_chooser_alone_follows_its_grammar(tokenizer: Tokenizer) -> None:
    options = GenerationOptions(grammar=Grammar.regex("yes|no"))
    model = build(tokenizer, hash_logits(VOCAB))
    (constraint,) = model.make_constraints(options, 1)
    chooser = RowChooser([1], options, list_end_ids(options, [EOS]), 20, constraint)
    ids, logits = [1], hash_logits(VOCAB)
    while (choice := chooser.choose(logits(ids))).finish_reason is None:
        ids.append(choice.token_id)
    assert tokenizer.decode(ids[1:]) in ("yes", "no")
    assert choice.finish_reason == "stop"


def test_without_a_grammar_there_is_no_constraint(random_model: LanguageModel) -> None:
    assert random_model.make_constraints(GenerationOptions(), 2) == [None, None]


def test_copy_goes_its_own_way(tokenizer: Tokenizer) -> None:
    first = compile_grammar(Grammar.regex("a+|b"), tokenizer, [EOS])
    second = first.copy()
    assert spell(first, tokenizer, "b")
    assert not spell(first.copy(), tokenizer, "a")
    assert spell(second, tokenizer, "aaa")


def test_token_that_cannot_come_is_refused(tokenizer: Tokenizer) -> None:
    constraint = compile_grammar(Grammar.regex("a"), tokenizer, [EOS])
    with pytest.raises(GrammarError, match="token 200 cannot come here"):
        constraint.accept(200)


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        (Grammar.json(), ['{"a": [1, null]}', "{}"], ["[1]", "3", "", '{"a":1}']),
        (Grammar.json_schema({"const": 'é"🙂'}), ['"é\\"🙂"'], ['"é"']),
        (Grammar.json_schema('{"type": "integer"}'), ["7", "-7"], ["7.5", "07"]),
        (Grammar.json_schema({"type": "object"}), ['{"a": 1}'], ['{\n"a": 1}', " {}"]),
        (Grammar.regex("a/b|é+"), ["a/b", "éé"], ["a", "e"]),
        (Grammar.regex("a.b"), ["axb"], ["a\nb"]),
        (Grammar.regex("((a{2}){2}){2}"), ["a" * 8], ["a" * 7, "a" * 9]),
        (Grammar.lark('start: "a" start "b" | "x"'), ["x", "aaxbb"], ["aaxb"]),
        (Grammar.lark('start: %json {"type": "null"} "&~" // & ~'), ["null&~"], ["null"]),
    ],
)
def test_grammar_takes_its_texts_and_no_others(
    tokenizer: Tokenizer, grammar: Grammar, yes: list[str], no: list[str]
) -> None:
    assert [matches(grammar, tokenizer, text) for text in yes] == [True] * len(yes)
    assert [matches(grammar, tokenizer, text) for text in no] == [False] * len(no)


# Refusals. All of them, the slowest included, take well below a second on an idle machine.

_SECONDS = 10.0


def refuse(tokenizer: Tokenizer, make: Callable[[], Grammar]) -> str:
    """The message about a grammar; it is one line, and comes soon."""
    started = time.perf_counter()
    with pytest.raises(GrammarError) as caught:
        compile_grammar(make(), tokenizer, [EOS])
    assert time.perf_counter() - started < _SECONDS
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def nest(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "http://127.0.0.1:9/x.json"}, "lies outside of it, and nothing is fetched"),
        ({"$ref": "file:///etc/passwd"}, "'file:///etc/passwd' lies outside"),
        ({"$ref": "other.json"}, "'other.json' lies outside"),
        ({"$ref": "#"}, "no text follows it"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no text follows it"),
        ({"type": "strnig"}, "Invalid type: strnig"),
        ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: \\["uniqueItems"\\]'),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "integer", "multipleOf": 1_000_003}, "multipleOf are too large"),
        ({"allOf": [{"multipleOf": p} for p in (97, 89, 83, 79)]}, "multipleOf are too large"),
        ({"multipleOf": 1e-300}, "multipleOf are too large"),
        ({"allOf": [{"pattern": f"(.*a.{{{i}}})*"} for i in range(9)]}, "has 9 patterns"),
        ({"patternProperties": {f"^a{i}$": {} for i in range(99)}}, "99 patternProperties"),
        ({"pattern": r"\p{L}{0,99}" * 400}, "4,400 characters"),
        ({"properties": {f"property_{i}": {} for i in range(9999)}}, "at most 65,536 are taken"),
        ({"const": float("nan")}, "cannot be written as JSON"),
        ({"const": object()}, "cannot be written as JSON"),
        ("{", "is not JSON"),
        ("[1]", "is not an object"),
        ("true", "is not an object"),
        (3, "expected a mapping or JSON text"),
        (nest(200), "recursion limit|too deeply"),
        (nest(2500), "is not JSON|recursion limit"),
        (nest(99_999), "2,499,977 characters"),
        ('{"const": "\\ud800"}', "escape"),
    ],
)
def test_hostile_schema_is_refused_soon_in_one_line(
    tokenizer: Tokenizer, schema: Any, words: str
) -> None:
    assert re.search(words, refuse(tokenizer, lambda: Grammar.json_schema(schema)))


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "unclosed group"),
        ("(?=a)b", "look-around"),
        (r"(a)\1", "backreferences are not supported"),
        ("(" * 2000 + ")" * 2000, "nested parentheses"),
        (r"\p{L}{0,99}" * 300, "too many expressions"),
        ("a" * 5000, "5,000 characters"),
        ("[a&&b]", "no text follows it"),
    ],
)
def test_hostile_expression_is_refused_soon_in_one_line(
    tokenizer: Tokenizer, pattern: str, words: str
) -> None:
    assert re.search(words, refuse(tokenizer, lambda: Grammar.regex(pattern)))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("start: start", "no text follows it"),
        ("begin: /a/", "no start rule"),
        ("start: foo", "foo"),
        ("start: " + "(" * 3000 + '"a"' + ")" * 3000, "too deeply nested"),
        ("start: T\nT: " + " & ".join(["/(.*a.{8})*/"] * 9), "'&' between its terminals"),
        ("start: T\nT: ~ /a/", "'~' between its terminals"),
        ("%import ../../etc/passwd.X\nstart: X", "lexer error|Expected"),
        ('start: %json {"$ref": "file:///etc/passwd"}', "lies outside"),
        ('start: %json {"multipleOf": 1000003}', "multipleOf are too large"),
        ("start: %json {", "is not JSON"),
        ('%llguidance {"no_forcing": false}\nstart: "a"', "remove it"),
        ("start: <|no_such_token|>", "unknown special token: [^;]*$"),
        ("start: A30\nA0: /a/\n" + "".join(f"A{i + 1}: A{i} A{i}\n" for i in range(30)), "too big"),
        ('start: "' + "a" * 20_000 + '"', "20,00. characters"),
    ],
)
def test_hostile_lark_is_refused_soon_in_one_line(
    tokenizer: Tokenizer, source: str, words: str
) -> None:
    assert re.search(words, refuse(tokenizer, lambda: Grammar.lark(source)))


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_schema({"type": "array", "items": {}, "minItems": 10**9}),
        Grammar.json_schema({"type": "array", "items": {"const": 1}, "minItems": 10**9}),
        Grammar.json_schema({"type": "string", "minLength": 10**9}),
        Grammar.json_schema({"const": 1, "x-guidance": {"whitespace_pattern": "((a{9}){9}){9}"}}),
        Grammar.regex("(" * 30 + "a" + "{2})" * 30),
        Grammar.lark(
            "start: T30\nT0: /a/\n" + "".join(f"T{i + 1}: T{i}{{2}}\n" for i in range(30))
        ),
    ],
)
def test_what_is_long_without_end_begins_soon(tokenizer: Tokenizer, grammar: Grammar) -> None:
    # Nothing is wrong with these but their length: they are followed as far as an answer goes.
    started = time.perf_counter()
    constraint = compile_grammar(grammar, tokenizer, [EOS])
    for _ in range(20):
        constraint.accept(int(np.flatnonzero(constraint.allowed())[-1]))
    assert time.perf_counter() - started < _SECONDS


def test_grammar_that_becomes_too_much_on_the_way_is_refused(tokenizer: Tokenizer) -> None:
    constraint = compile_grammar(Grammar.regex("(.*[ab].{0,50}){10}"), tokenizer, [EOS])
    letter = tokenizer.encode("a", add_special_tokens=False)[0]

    def go_on() -> None:
        for _ in range(300):
            constraint.allowed()
            constraint.accept(letter)

    with pytest.raises(GrammarError, match=r"cannot be followed further: .*too many expressions"):
        go_on()


def test_model_without_an_end_token_is_told(tokenizer: Tokenizer) -> None:
    with pytest.raises(GrammarError, match="none of the model's end-of-turn tokens"):
        compile_grammar(Grammar.json(), tokenizer, [VOCAB + 5])


def test_model_narrower_than_every_end_token_is_told(tokenizer: Tokenizer) -> None:
    constraint = compile_grammar(Grammar.regex("a"), tokenizer, [EOS])
    with pytest.raises(GrammarError, match="no token of this model can follow"):
        constraint.mask(np.zeros(5, np.float32))


def test_bad_grammar_is_refused_before_anything_runs(random_model: LanguageModel) -> None:
    with pytest.raises(GrammarError, match="unclosed group"):
        random_model.stream([1, 2], grammar=Grammar.regex("("))
    cache = PromptCache(random_model.runtime)
    with pytest.raises(GrammarError, match="unclosed group"):
        random_model.stream([1, 2], grammar=Grammar.regex("("), cache=cache)


def test_missing_llguidance_says_how_to_get_it(
    random_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(GRAMMAR_COMPILER), "missing", lambda self: self.needs)
    with pytest.raises(RuntimeUnavailableError, match=r"needs llguidance.*lfm2-deploy\[serve\]"):
        random_model.generate([1, 2], grammar=Grammar.json())


def test_nothing_is_printed(tokenizer: Tokenizer, capfd: pytest.CaptureFixture[str]) -> None:
    for make in (Grammar.json, lambda: Grammar.regex("(")):
        try:
            compile_grammar(make(), tokenizer, [EOS])
        except GrammarError:
            continue
    assert capfd.readouterr() == ("", "")


# The value.


def test_grammar_is_a_value() -> None:
    assert Grammar.json_schema({"b": 1, "a": 2}) == Grammar.json_schema('{"b": 1, "a": 2}')
    assert len({Grammar.regex("a"), Grammar.regex("a"), Grammar.lark("start: /a/")}) == 2


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("gbnf", "", "expected one of json, json_schema"),
        ("json", "{}", "no source"),
        ("regex", 3, "expected text"),
    ],
)
def test_grammar_that_is_none_is_refused(kind: Any, source: Any, words: str) -> None:
    with pytest.raises(GrammarError, match=words):
        Grammar(kind, source)


def test_option_that_is_no_grammar_is_named() -> None:
    with pytest.raises(GenerationError, match=r"^grammar is '.*', expected a Grammar"):
        GenerationOptions().with_overrides(grammar='{"type": "object"}')


def test_reasonable_multiples_are_taken() -> None:
    for step in (0.01, 0.25, 5, 60, 1024, 7.5):
        Grammar.json_schema({"type": "number", "multipleOf": step})


@pytest.mark.parametrize("character", ['"', "/"])
def test_lark_text_without_an_end_is_read_in_linear_time(character: str) -> None:
    source = f"start: {character}" + f"\\{character}" * 8000
    began = time.process_time()
    Grammar.lark(source)
    # A millisecond; to begin anew at each of its characters took 2 to 3 s.
    assert time.process_time() - began < 0.5


def test_sign_after_a_text_without_an_end_is_seen() -> None:
    with pytest.raises(GrammarError, match="between its terminals"):
        Grammar.lark('start: /a/ & "b')
    with pytest.raises(GrammarError, match="between its terminals"):
        Grammar.lark('start: "b & /a/')
    Grammar.lark('start: "a & b" /&/ // ~')
