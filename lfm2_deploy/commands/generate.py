"""`lfm2-deploy generate`: continue one text, or several as one batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lfm2_deploy.commands import options
from lfm2_deploy.commands.completions import (
    describe_completion,
    print_logprobs,
    summarize_speed,
)
from lfm2_deploy.commands.console import note, output, print_json, printable, write_text
from lfm2_deploy.errors import GenerationError

if TYPE_CHECKING:
    from lfm2_deploy.generate import Completion, LanguageModel, Prompt

_STDIN = "-"
_TITLE_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is asked, and how the answers are shown.

    Args:
        texts: the prompts as they were given.
        inputs: the same as the model takes them.
        shows_prompt: an answer continues its prompt, so a terminal shows both.
        is_batch: answers are several, or would be if the file were longer.
    """

    texts: Sequence[str]
    inputs: Sequence[Prompt]
    shows_prompt: bool
    is_batch: bool


def generate(
    bundle: options.BundlePath,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help='Text to continue; "-" reads it from stdin.'),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take prompts from a file, one a line."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask as a user's message instead of continuing text.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --chat: the system's message.")
    ] = None,
    max_new_tokens: options.MaxNewTokens = None,
    stop: options.Stop = None,
    ignore_eos: options.IgnoreEos = False,
    greedy: options.Greedy = False,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Tell each token's odds, and the N likeliest."),
    ] = None,
    threads: options.Threads = None,
    stream: Annotated[bool, typer.Option(help="Show one prompt's text as it comes.")] = True,
    stats: Annotated[bool, typer.Option("--stats", help="Tell the speed, on stderr.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Continue a text, or several at once.

    Unless told otherwise, tokens are chosen as the model's generation_config.json says.

    \b
    Examples:
      lfm2-deploy generate ./LFM2-350M-cpu-int4 "The capital of France is"
      lfm2-deploy generate ./LFM2-350M-cpu-int4 --chat "Name three rivers." --stats
      cat letter.txt | lfm2-deploy generate ./LFM2-350M-cpu-int4 - --json
    """
    overrides = options.gather_overrides(
        greedy=greedy,
        temperature=temperature,
        stop=stop,
        max_new_tokens=max_new_tokens,
        ignore_eos=ignore_eos or None,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        logprobs=logprobs,
    )
    prompts = _gather_prompts(prompt or [], prompts_file, chat, system)
    model = options.load_model(bundle, threads)
    overrides["max_new_tokens"] = options.fit_length(model, prompts.inputs, max_new_tokens)
    if as_json:
        _print_as_json(model, prompts, overrides)
    else:
        _print_as_text(model, prompts, overrides, stream, stats)


def _gather_prompts(
    words: Sequence[str], file: Path | None, chat: bool, system: str | None
) -> Prompts:
    if system is not None and not chat:
        raise typer.BadParameter("--system is for a chat: add --chat")
    texts = [_read_stdin() if word == _STDIN else word for word in words]
    texts += [] if file is None else _read_lines(file)
    if not texts:
        missing = "a PROMPT, or --prompts-file" if file is None else f"at least one line in {file}"
        raise typer.BadParameter(f"there is nothing to continue: give {missing}")
    is_batch = len(words) != 1 or file is not None
    if not chat:
        return Prompts(texts, texts, True, is_batch)
    before = [] if system is None else [{"role": "system", "content": system}]
    chats = [[*before, {"role": "user", "content": text}] for text in texts]
    return Prompts(texts, chats, False, is_batch)


def _read_lines(file: Path) -> list[str]:
    text = _decode(file.read_bytes(), str(file))
    return [line for line in text.replace("\r\n", "\n").split("\n") if line]


def _read_stdin() -> str:
    if sys.stdin.isatty():
        note("reading the prompt from the keyboard; Ctrl-D on an empty line ends it")
    # The newline that ends a piped text is the shell's, not the prompt's.
    return _decode(sys.stdin.buffer.read(), "stdin").removesuffix("\n").removesuffix("\r")


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GenerationError(
            f"{source} is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}); "
            "convert it first"
        ) from error


def _print_as_json(model: LanguageModel, prompts: Prompts, overrides: dict[str, Any]) -> None:
    answers = model.generate_batch(prompts.inputs, **overrides)
    described = [describe_completion(answer, model.tokenizer) for answer in answers]
    print_json({"completions": described} if prompts.is_batch else described[0])


def _print_as_text(
    model: LanguageModel, prompts: Prompts, overrides: dict[str, Any], stream: bool, stats: bool
) -> None:
    if prompts.is_batch:
        answers = list(_show_batch(model, prompts, overrides))
    else:
        answers = [_show_one(model, prompts, overrides, stream)]
    for answer in answers:
        if answer.logprobs is not None:
            print_logprobs(answer.logprobs, model.tokenizer)
    if stats:
        note(summarize_speed(answers))


def _show_one(
    model: LanguageModel, prompts: Prompts, overrides: dict[str, Any], stream: bool
) -> Completion:
    chunks = model.stream(prompts.inputs[0], **overrides)
    if prompts.shows_prompt:
        _echo_prompt(prompts.texts[0])
    for chunk in chunks:
        if stream:
            write_text(chunk.text)
        if chunk.completion is not None:
            write_text("\n" if stream else chunk.completion.text + "\n")
            return chunk.completion
    raise AssertionError("a stream ends with a completion")


def _show_batch(
    model: LanguageModel, prompts: Prompts, overrides: dict[str, Any]
) -> Iterator[Completion]:
    """Print the answers in the order of their prompts, each as soon as its turn comes."""
    chunks = model.stream_batch(prompts.inputs, **overrides)
    finished: dict[int, Completion] = {}
    shown = 0
    for chunk in chunks:
        if chunk.completion is not None:
            finished[chunk.row] = chunk.completion
        while shown in finished:
            _print_heading(shown, prompts.texts)
            if prompts.shows_prompt:
                _echo_prompt(prompts.texts[shown])
            write_text(finished[shown].text + "\n")
            yield finished[shown]
            shown += 1


def _print_heading(index: int, texts: Sequence[str]) -> None:
    title = " ".join(texts[index].split())
    if len(title) > _TITLE_CHARACTERS:
        title = title[: _TITLE_CHARACTERS - 3] + "..."
    heading = f"--- {index + 1} of {len(texts)}: {printable(title)}"
    output().print(Text(heading, style="bold cyan"), soft_wrap=True)


def _echo_prompt(text: str) -> None:
    """On a terminal, the prompt in front of its continuation."""
    console = output()
    if console.is_terminal:
        console.print(Text(printable(text), style="dim"), end="", soft_wrap=True)
