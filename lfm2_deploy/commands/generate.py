"""`lfm2-deploy generate`: continue one text, or several in batches."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    from lfm2_deploy.completion import Completion, TextChunk
    from lfm2_deploy.generate import LanguageModel, Prompt
    from lfm2_deploy.prompt_cache import PromptCache

_STDIN = "-"
_TITLE_CHARACTERS = 60
# A row keeps its whole context in memory, so a long file is not run as one batch.
MOST_TOGETHER = 16


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


@dataclass(frozen=True, slots=True)
class _Request:
    """A model, and what it is to do.

    Args:
        model: what answers.
        prompts: all of them.
        groups: their token ids in the same order, cut into what runs together.
        overrides: options of `LanguageModel.stream_batch`.
        cache: what was computed for earlier prompts, where asked for.
    """

    model: LanguageModel
    prompts: Prompts
    groups: Sequence[Sequence[Sequence[int]]]
    overrides: Mapping[str, Any]
    cache: PromptCache | None = None


@options.takes_generation_options
def generate(
    bundle: options.BundlePath,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help='Text to continue; "-" reads it from stdin.'),
    ] = None,
    *,
    prompts_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take prompts from a text file, one a line."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask as a user's message instead of continuing text.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --chat: the system's message.")
    ] = None,
    overrides: dict[str, Any],
    logprobs: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Tell each token's log probability, and the N likeliest."
        ),
    ] = None,
    prompt_cache: options.PromptCacheFolder = None,
    threads: options.Threads = None,
    device: options.Device = None,
    canary: options.Canary = None,
    stream: Annotated[bool, typer.Option(help="Show one prompt's text as it comes.")] = True,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats", help="Tell time to the first token and tokens a second, on stderr."
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Continue a text, or several at once.

    Text goes to stdout as it comes. Unless told otherwise, tokens are chosen as the
    model's generation_config.json says. Several prompts run as one batch.

    \b
    Examples:
      lfm2-deploy generate ./LFM2-350M-cpu-int4 "The capital of France is"
      lfm2-deploy generate ./LFM2-350M-cpu-int4 --chat "Name three rivers." --stats
      cat letter.txt | lfm2-deploy generate ./LFM2-350M-cpu-int4 - --json
      lfm2-deploy generate ./LFM2-350M-cpu-int4 --prompts-file prompts.txt --greedy

    \b
    See also:
      lfm2-deploy chat BUNDLE         a conversation
      lfm2-deploy bench BUNDLE        speed, measured well
    """
    prompts = _gather_prompts(prompt or [], prompts_file, chat, system)
    model = options.load_model(bundle, threads, device, canary, has_option=True)
    options.warn_of_speculation(model, overrides)
    if prompt_cache is not None and prompts.is_batch:
        raise typer.BadParameter("--prompt-cache serves one prompt at a time: give one")
    request = _prepare(model, prompts, {**overrides, "logprobs": logprobs})
    if prompt_cache is not None:
        request = replace(request, cache=options.open_cache(model, bundle, prompt_cache))
    if as_json:
        _print_as_json(request)
    else:
        _print_as_text(request, stream, stats)


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


def _prepare(model: LanguageModel, prompts: Prompts, overrides: dict[str, Any]) -> _Request:
    """Encode the prompts and check all of them, so that none fails after others ran."""
    from lfm2_deploy.tokens import check_room, check_rows

    rows = [model.encode_prompt(prompt) for prompt in prompts.inputs]
    length = options.fit_length(model, rows, overrides["max_new_tokens"])
    check_rows(rows)
    check_room([len(row) for row in rows], length, model.runtime.context_length)
    size = min(MOST_TOGETHER, model.runtime.info.capabilities.max_batch_size or MOST_TOGETHER)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    return _Request(model, prompts, groups, {**overrides, "max_new_tokens": length})


def _print_as_json(request: _Request) -> None:
    model, overrides = request.model, request.overrides
    device = model.runtime.info.device
    if not request.prompts.is_batch:
        answer = model.generate(request.groups[0][0], cache=request.cache, **overrides)
        print_json({**describe_completion(answer, model.tokenizer), "device": device})
        return
    described = [
        describe_completion(answer, model.tokenizer)
        for group in request.groups
        for answer in model.generate_batch(group, **overrides)
    ]
    print_json({"completions": described, "device": device})


def _print_as_text(request: _Request, stream: bool, stats: bool) -> None:
    if request.prompts.is_batch:
        batches = list(_show_batches(request))
    else:
        batches = [[_show_one(request, stream)]]
    for answer in itertools.chain.from_iterable(batches):
        if answer.logprobs is not None:
            print_logprobs(answer.logprobs, request.model.tokenizer)
    if stats:
        note(summarize_speed(*batches))


def _show_one(request: _Request, stream: bool) -> Completion:
    ids = request.groups[0][0]
    chunks = request.model.stream(ids, cache=request.cache, **request.overrides)
    if request.prompts.shows_prompt:
        _echo_prompt(request.prompts.texts[0])
    for chunk in chunks:
        if stream:
            write_text(chunk.text)
        if chunk.completion is not None:
            write_text("\n" if stream else chunk.completion.text + "\n")
            answer = chunk.completion
    return answer


def _show_batches(request: _Request) -> Iterator[list[Completion]]:
    """Print the answers in the order of their prompts, each as soon as its turn comes."""
    shown = 0
    for group in request.groups:
        batch = []
        for answer in _in_order(request.model.stream_batch(group, **request.overrides)):
            _print_heading(shown, request.prompts.texts)
            if request.prompts.shows_prompt:
                _echo_prompt(request.prompts.texts[shown])
            write_text(answer.text + "\n")
            batch.append(answer)
            shown += 1
        yield batch


def _in_order(chunks: Iterator[TextChunk]) -> Iterator[Completion]:
    """The answers of a batch in the order of its rows."""
    finished: dict[int, Completion] = {}
    row = 0
    for chunk in chunks:
        if chunk.completion is not None:
            finished[chunk.row] = chunk.completion
        while row in finished:
            yield finished[row]
            row += 1


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
