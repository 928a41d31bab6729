"""Scores of continuations, against the definition: each pair read on its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from lfm2_deploy.compare.metrics import log_softmax
from lfm2_deploy.contracts import Capabilities, FloatArray
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from lfm2_deploy.evaluation import scoring
from lfm2_deploy.evaluation.scoring import Pair, Score, score_pairs
from runtimes.fake import ALL_CAPABILITIES, FakeRuntime, hash_logits

VOCABULARY = 32
NEXT = hash_logits(VOCABULARY)
# What a session can do decides how it is asked, and must not decide what comes out.
KINDS = {
    "all": ALL_CAPABILITIES,
    "cheap steps": replace(ALL_CAPABILITIES, tokens_per_step=0),
    "cannot go back": replace(ALL_CAPABILITIES, rewinds=False),
    "appends one by one": replace(ALL_CAPABILITIES, appends_many=False),
    "last logits only": replace(ALL_CAPABILITIES, scores_all=False, tokens_per_step=1),
    "chunks of four": replace(ALL_CAPABILITIES, chunk=4, max_batch_size=1),
    "nothing": Capabilities(False, False, 1, False),
}


def open_runtime(capabilities: Capabilities = ALL_CAPABILITIES, context: int = 64) -> FakeRuntime:
    return FakeRuntime(
        NEXT, vocab_size=VOCABULARY, context_length=context, capabilities=capabilities
    )


def score_alone(pair: Pair) -> Score:
    """By definition: the logits after each prefix, one at a time."""
    ids, logprob, greedy = [*pair.context], 0.0, True
    for token in pair.continuation:
        logits = NEXT(ids)
        logprob += float(log_softmax(logits)[token])
        greedy &= int(logits.argmax()) == token
        ids.append(token)
    return Score(logprob, greedy)


def continue_greedily(context: tuple[int, ...], count: int) -> tuple[int, ...]:
    ids = list(context)
    for _ in range(count):
        ids.append(int(NEXT(ids).argmax()))
    return tuple(ids[len(context) :])


GREEDY = Pair((1, 2, 3), continue_greedily((1, 2, 3), 4))


def make_questions(seed: int) -> list[Pair]:
    """Questions with examples in common, four answers each, some of which begin alike."""
    source = random.Random(seed)
    examples = tuple(source.randrange(VOCABULARY) for _ in range(30))
    pairs = []
    for _ in range(6):
        question = tuple(source.randrange(VOCABULARY) for _ in range(source.randrange(1, 8)))
        for _ in range(4):
            answer = tuple(source.randrange(3) for _ in range(source.randrange(5)))
            pairs.append(Pair((*examples, *question), answer))
    pairs += [GREEDY, pairs[3], Pair((1,), examples), Pair((1, *examples[:9]), examples[9:12])]
    source.shuffle(pairs)
    return pairs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_each_pair_alone(kind: str, seed: int) -> None:
    pairs = make_questions(seed)
    told: list[int] = []
    scores, effort = score_pairs(open_runtime(KINDS[kind]), pairs, told.append)
    assert scores[pairs.index(GREEDY)].greedy
    for pair, score in zip(pairs, scores, strict=True):
        expected = score_alone(pair)
        # Float32 logits are normalized in another order.
        assert score.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert score.greedy is expected.greedy
    assert sum(told) == len(pairs)
    assert effort.read <= effort.asked


def test_logits_in_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair((1, 2), tuple(range(3, 30)))
    monkeypatch.setattr(scoring, "_LOGITS_BYTES", 5 * 4 * VOCABULARY)
    monkeypatch.setattr(scoring, "_LARGEST_WHOLE_BYTES", 5 * 4 * VOCABULARY)
    for capabilities in (ALL_CAPABILITIES, replace(ALL_CAPABILITIES, appends_many=False)):
        runtime = open_runtime(capabilities)
        (score,), _ = score_pairs(runtime, [pair])
        assert score.logprob == pytest.approx(score_alone(pair).logprob, abs=1e-5)
        calls = runtime.sessions[0].calls
        scored = [rows[0] for name, rows in calls if name == "score"]
        assert all(len(row) <= 5 for row in scored)
        assert len(scored) + sum(name == "decode" for name, _ in calls) > 5


def test_examples_and_questions_in_common_are_read_once() -> None:
    examples, questions = tuple(range(25)), [(26, 27), (27, 26), (28, 29)]
    cheap = replace(ALL_CAPABILITIES, tokens_per_step=1)
    pairs = [Pair((*examples, *q), (a, 5, 6)) for q in questions for a in (1, 2, 3, 4)]
    _, effort = score_pairs(open_runtime(cheap), pairs)
    # The examples; two tokens of each question; two of each answer, whose last predicts nothing.
    assert effort.read == 25 + 3 * (2 + 4 * 2)
    assert effort.asked == 12 * (25 + 2 + 2)


def test_answers_of_one_token_cost_one_reading_whatever_a_runtime_can() -> None:
    pairs = [Pair((1, 2, 3, 4), (answer,)) for answer in range(8)]
    runtime = open_runtime(KINDS["nothing"])
    _, effort = score_pairs(runtime, pairs)
    assert effort.read == 4
    assert [name for name, _ in runtime.sessions[0].calls] == ["prefill"]


def test_little_in_common_is_not_worth_a_mark() -> None:
    pairs = [Pair((1, 5, 6, 7), (8,)), Pair((1, 9, 10, 11), (8,))]
    runtime = open_runtime()
    score_pairs(runtime, pairs)
    assert [name for name, _ in runtime.sessions[0].calls] == ["prefill", "reset", "prefill"]


def test_hundreds_of_prefixes_of_each_other_are_scored() -> None:
    ids = tuple(random.Random(0).randrange(VOCABULARY) for _ in range(400))
    cheap = replace(ALL_CAPABILITIES, tokens_per_step=0)
    runtime = FakeRuntime(
        lambda history: NEXT(history[-3:]),
        vocab_size=VOCABULARY,
        context_length=512,
        capabilities=cheap,
    )
    pairs = [Pair(ids[:length], (0, 1)) for length in range(1, 400)]
    scores, effort = score_pairs(runtime, pairs)
    assert len(scores) == 399
    assert effort.read < 5 * 399


def test_nothing_to_score_is_certain_and_costs_nothing() -> None:
    runtime = open_runtime()
    scores, effort = score_pairs(runtime, [Pair((1, 2), ())])
    assert scores == [Score(0.0, True)]
    assert effort.read == 0
    assert runtime.sessions == []


def test_empty_context_is_refused() -> None:
    with pytest.raises(GenerationError, match="context is empty"):
        score_pairs(open_runtime(), [Pair((), (1,))])


def test_pair_may_be_one_token_longer_than_the_context_and_no_more() -> None:
    pair = Pair((1, 2, 3), (4, 5))
    score_pairs(open_runtime(context=4), [pair])
    with pytest.raises(ContextOverflowError):
        score_pairs(open_runtime(context=3), [pair])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_that_are_not_finite_give_no_score(kind: str, wrong: float) -> None:
    def overflow(history: Sequence[int]) -> FloatArray:
        logits = NEXT(history)
        logits[5] = wrong
        return logits

    runtime = FakeRuntime(
        overflow, vocab_size=VOCABULARY, context_length=64, capabilities=KINDS[kind]
    )
    with pytest.raises(GenerationError, match="not finite"):
        score_pairs(runtime, [Pair((1, 2), (3, 4))])
