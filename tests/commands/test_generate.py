"""`lfm2-deploy generate`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import lfm2_deploy
from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.commands.completions import summarize_speed
from lfm2_deploy.completion import Completion
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.generate import LanguageModel

PROMPT = "My fellow Americans,"
SHORT = ("--greedy", "--max-new-tokens", "8", "--threads", "1")


def test_stdout_is_the_text_and_nothing_else(run: Callable, bundle: Path) -> None:
    plain = run("generate", bundle, PROMPT, *SHORT)
    record = json.loads(run("generate", bundle, PROMPT, *SHORT, "--json").stdout)
    assert plain.exit_code == 0
    assert plain.stdout == record["text"] + "\n"
    assert plain.stderr == ""


def test_text_is_the_same_without_streaming(run: Callable, bundle: Path) -> None:
    streamed = run("generate", bundle, PROMPT, *SHORT)
    assert run("generate", bundle, PROMPT, *SHORT, "--no-stream").stdout == streamed.stdout


def test_json_tells_tokens_reason_logprobs_and_times(run: Callable, bundle: Path) -> None:
    record = json.loads(run("generate", bundle, PROMPT, *SHORT, "--logprobs", "2", "--json").stdout)
    assert len(record["token_ids"]) == 8
    assert record["finish_reason"] == "length"
    assert record["prompt_tokens"] > 1
    assert record["timings"]["decode_tokens_per_second"] > 0
    first = record["logprobs"][0]
    assert first["token_id"] == record["token_ids"][0] == first["top"][0]["token_id"]
    assert len(first["top"]) == 2


def test_prompt_is_read_from_stdin_without_its_last_newline(run: Callable, bundle: Path) -> None:
    given = run("generate", bundle, PROMPT, *SHORT)
    assert run("generate", bundle, "-", *SHORT, stdin=PROMPT + "\n").stdout == given.stdout


def test_several_prompts_answer_as_each_alone(run: Callable, bundle: Path) -> None:
    prompts = (PROMPT, "In the beginning")
    alone = [run("generate", bundle, prompt, *SHORT).stdout for prompt in prompts]
    together = run("generate", bundle, *prompts, *SHORT).stdout
    assert together == f"--- 1 of 2: {prompts[0]}\n{alone[0]}--- 2 of 2: {prompts[1]}\n{alone[1]}"


def test_prompts_of_a_file_are_a_list_in_json(run: Callable, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(f"{PROMPT}\n\nIn the beginning\n", encoding="utf-8")
    record = json.loads(run("generate", bundle, "--prompts-file", file, *SHORT, "--json").stdout)
    assert len(record["completions"]) == 2
    file.write_text(PROMPT, encoding="utf-8")
    record = json.loads(run("generate", bundle, "--prompts-file", file, *SHORT, "--json").stdout)
    assert len(record["completions"]) == 1


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_long_file_runs_in_groups_and_answers_in_order(
    run: Callable,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
) -> None:
    sizes = []
    stream_batch = LanguageModel.stream_batch

    def count(model: LanguageModel, prompts: Sequence, *args: object, **options: object) -> object:
        sizes.append(len(prompts))
        return stream_batch(model, prompts, *args, **options)

    monkeypatch.setattr(LanguageModel, "stream_batch", count)
    words = ("--greedy", "--max-new-tokens", "2", "--threads", "1")
    file = tmp_path / "prompts.txt"
    prompts = [f"In the year {number}," for number in range(35)]
    file.write_text("\n".join(prompts), encoding="utf-8")
    result = run("generate", bundle, "--prompts-file", file, *words, *more)
    assert sizes == [16, 16, 3]
    alone = run("generate", bundle, prompts[33], *words).stdout.removesuffix("\n")
    if more:
        answers = json.loads(result.stdout)["completions"]
        assert len(answers) == 35
        assert answers[33]["text"] == alone
    else:
        assert f"--- 34 of 35: {prompts[33]}\n{alone}\n--- 35 of 35: " in result.stdout


def test_prompt_that_does_not_fit_is_refused_before_any_runs(
    run: Callable, fails: Callable, bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("short\n" * 20 + "and " * 3000, encoding="utf-8")
    fails(run("generate", bundle, "--prompts-file", file), "prompt 20", "the context holds 2048")


def test_speed_of_groups_is_that_of_all_their_work() -> None:
    answer = Completion("x", (1, 2, 3), "length", None, 10, None, 2.0, 1.0)
    words = summarize_speed([answer, answer], [answer])
    assert words == "prompt 30 tokens in 4.00 s (7.5 tok/s), answer 9 tokens in 2.00 s (3.0 tok/s)"


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_special_tokens_are_shown_where_asked(
    run: Callable, bundle: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    given = []
    stream = LanguageModel.stream

    def look(model: LanguageModel, *args: object, **options: object) -> object:
        given.append(options["skip_special_tokens"])
        return stream(model, *args, **options)

    monkeypatch.setattr(LanguageModel, "stream", look)
    words = ("Hello",) if command == "generate" else ()
    for more in ((), ("--show-special-tokens",)):
        assert run(command, bundle, *words, *SHORT, *more, stdin="Hello\n").exit_code == 0
    assert given == [None, False]


def test_chat_is_rendered_once(
    run: Callable, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []
    render = ChatTemplate.render

    def count(template: ChatTemplate, *args: object, **options: object) -> str:
        rendered.append(args)
        return render(template, *args, **options)

    monkeypatch.setattr(ChatTemplate, "render", count)
    # Without --max-new-tokens, the length that fits has to be found, too.
    assert run("generate", bundle, "Hello", "--chat", "--stop", "e").exit_code == 0
    assert len(rendered) == 1


def test_chat_renders_the_template(run: Callable, bundle: Path) -> None:
    words = ("generate", bundle, "Hello", *SHORT, "--json")
    plain, chat, system = (
        json.loads(run(*words, *more).stdout)["prompt_tokens"]
        for more in ((), ("--chat",), ("--chat", "--system", "Be kind."))
    )
    assert plain < chat < system


def test_stats_and_logprobs_go_to_stderr(run: Callable, bundle: Path) -> None:
    result = run("generate", bundle, PROMPT, *SHORT, "--stats", "--logprobs", "1")
    assert "tok/s" in result.stderr
    assert "probability" in result.stderr
    assert result.stdout == run("generate", bundle, PROMPT, *SHORT).stdout


def test_stop_text_ends_before_it(run: Callable, bundle: Path) -> None:
    text = json.loads(run("generate", bundle, PROMPT, *SHORT, "--json").stdout)["text"]
    stop = text.strip().split()[1]
    record = json.loads(run("generate", bundle, PROMPT, *SHORT, "--stop", stop, "--json").stdout)
    assert record["stop"] == stop
    assert record["text"] == text.partition(stop)[0]


def test_same_seed_gives_the_same_text(run: Callable, bundle: Path) -> None:
    words = ("generate", bundle, PROMPT, "--temperature", "2", "--max-new-tokens", "12", "--seed")
    assert run(*words, "5").stdout == run(*words, "5").stdout != run(*words, "6").stdout


def test_length_left_open_fills_a_small_context(run: Callable, bundle: Path) -> None:
    prompt = "and the " * 950
    record = json.loads(run("generate", bundle, prompt, "--ignore-eos", "--json").stdout)
    assert record["finish_reason"] == "length"
    assert record["prompt_tokens"] + len(record["token_ids"]) == 2048


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ((), 2, "--prompts-file"),
        (("x", "--system", "y"), 2, "--chat"),
        (("x", "--greedy", "--temperature", "1"), 2, "--greedy"),
        (("x", "--temperature", "-1"), 1, "temperature"),
        (("x", "--top-p", "0"), 1, "top_p"),
        (("x", "--max-new-tokens", "5000"), 1, "2048"),
        (("and " * 3000,), 1, "the context holds 2048"),
        (("--prompts-file", "no-such-file"), 1, "no-such-file"),
        (("half of a pair: \udc80",), 1, "Unicode"),
    ],
)
def test_bad_request_is_one_line(
    run: Callable, fails: Callable, bundle: Path, words: tuple[str, ...], code: int, expected: str
) -> None:
    fails(run("generate", bundle, *words), expected, code=code)


def test_stdin_that_is_not_text_is_refused(run: Callable, fails: Callable, bundle: Path) -> None:
    fails(run("generate", bundle, "-", stdin=b"a\xff"), "stdin", "UTF-8")


def test_missing_bundle_tells_how_to_make_one(
    run: Callable, fails: Callable, tmp_path: Path
) -> None:
    fails(run("generate", tmp_path / "none", "x"), "does not exist", "lfm2-deploy export")


@pytest.mark.parametrize("name", ["model.onnx.data", "tokenizer.json"])
def test_damaged_bundle_names_the_file(
    run: Callable, fails: Callable, copied_bundle: Path, name: str
) -> None:
    file = copied_bundle / name
    file.write_bytes(file.read_bytes()[:-1])
    fails(run("generate", copied_bundle, "x"), name, "damaged")


def test_bundle_without_tokenizer_says_so(
    run: Callable, fails: Callable, random_bundle: Path
) -> None:
    fails(run("generate", random_bundle, "x"), "tokenizer.json")


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts differ")
def test_interrupt_is_quiet(program: Sequence[str], bundle: Path) -> None:
    words = [*program, "generate", str(bundle), "A", "--max-new-tokens", "2000", "--ignore-eos"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")


def test_prompt_cache_is_used_by_the_next_run(run: Callable, bundle: Path, tmp_path: Path) -> None:
    text = "It is a truth universally acknowledged, that a single man in possession " * 8
    words = ("generate", bundle, text, *SHORT, "--prompt-cache", tmp_path / "kept", "--json")
    first, second = (json.loads(run(*words).stdout) for _ in range(2))
    assert (first["reused_tokens"], second["reused_tokens"]) == (0, first["prompt_tokens"])
    assert second["text"] == first["text"]
    assert second["timings"]["prefill_tokens_per_second"] is None


def test_prompt_cache_for_several_prompts_is_refused(
    run: Callable, bundle: Path, tmp_path: Path
) -> None:
    result = run("generate", bundle, "a", "b", "--prompt-cache", tmp_path)
    assert result.exit_code == 2
    assert "one prompt at a time" in result.stderr


def test_looking_ahead_gives_the_same_text_and_tells_how_it_went(
    run: Callable, tmp_path: Path
) -> None:
    # Float32: int4's experts round a little otherwise where several tokens come at once.
    bundle = lfm2_deploy.export(str(DEMO_MODEL), tmp_path / "fp32", precision="fp32").path
    text = "to be or not to be or not to be or not to be or not to be or not"
    words = ("generate", bundle, text, "--greedy", "--max-new-tokens", "60", "--ignore-eos")
    plain = run(*words, "--stats")
    ahead = run(*words, "--stats", "--speculate")
    assert ahead.stdout == plain.stdout
    assert "guesses right" in ahead.stderr
    assert "guesses" not in plain.stderr


def test_answer_follows_a_schema_a_grammar_or_an_expression(
    run: Callable, bundle: Path, tmp_path: Path
) -> None:
    schema, grammar = tmp_path / "person.json", tmp_path / "list.lark"
    schema.write_text('{"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}', "utf-8")
    grammar.write_text('start: "(" /[a-z]{1,5}/ ")"', "utf-8")
    listed = run("generate", bundle, PROMPT, "--schema", schema, "--seed", "1").stdout
    assert set(json.loads(listed)) <= {1, 2}
    assert re.fullmatch(
        r"\([a-z]{1,5}\)\n", run("generate", bundle, PROMPT, "--grammar", grammar).stdout
    )
    answer = run("generate", bundle, PROMPT, "--regex", "[0-9]{3}", "--presence-penalty", "1.5")
    assert re.fullmatch(r"[0-9]{3}\n", answer.stdout)


def test_option_of_other_programs_leads_to_ours(run: Callable, bundle: Path) -> None:
    told = run("generate", bundle, PROMPT, "--max-tokens", "3").stderr
    assert "No such option: --max-tokens; did you mean --max-new-tokens" in told
    told = run("serve", bundle, "--max-new-tokens", "3").stderr
    assert "did you mean --max-tokens" in told


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpuu", "there is no device 'gpuu'; did you mean gpu"),
        ("nvidia", "cannot run on 'nvidia': export the model with --target auto, or for that"),
        ("cuda", "--target webgpu or directml"),
    ],
)
def test_device_that_does_not_fit_is_one_line_with_what_does(
    run: Callable, bundle: Path, device: str, message: str
) -> None:
    result = run("generate", bundle, PROMPT, "--device", device)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--regex", "("), 1, "the regular expression cannot be used: unclosed group"),
        (("--regex", "a", "--schema", "FILE"), 2, "choose one"),
        (("--schema", "FILE"), 1, "bad: the JSON schema is not JSON"),
        (("--schema", "no/such/file"), 1, "error: --schema no/such/file: it cannot be read (No s"),
        (("--schema", "FOLDER"), 1, ": it cannot be read ("),
        (("--schema", "UNKNOWN"), 1, "JSON schema cannot be used: Unknown format: date-tim"),
        (("--grammar", "FILE"), 1, "the Lark grammar cannot be used: "),
        (("--grammar", "x.gbnf"), 1, "--grammar x.gbnf: this is GBNF, which is not read: write"),
        (("--frequency-penalty", "3"), 1, "frequency_penalty is 3.0, expected a number from -2"),
    ],
)
def test_bad_grammar_or_penalty_is_one_line(
    run: Callable, bundle: Path, tmp_path: Path, words: Sequence[str], code: int, message: str
) -> None:
    file = tmp_path / "bad"
    file.write_text("no grammar at all", "utf-8")
    unknown = tmp_path / "unknown.json"
    unknown.write_text('{"type": "string", "format": "date-tim"}', "utf-8")
    places = {"FILE": file, "FOLDER": tmp_path, "UNKNOWN": unknown}
    # Before the bundle is looked at.
    result = run("generate", tmp_path, PROMPT, *(places.get(word, word) for word in words))
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
