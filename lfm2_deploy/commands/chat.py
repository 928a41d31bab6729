"""`lfm2-deploy chat`: a conversation in the terminal, or one message a line from a pipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfm2_deploy.commands import options
from lfm2_deploy.commands.completions import decode_rate, describe_guesses
from lfm2_deploy.commands.console import format_seconds, note, notes, write_text
from lfm2_deploy.commands.conversation import Conversation
from lfm2_deploy.commands.failures import ERROR, print_error
from lfm2_deploy.errors import ContextOverflowError, Lfm2DeployError, TemplateError

if TYPE_CHECKING:
    from lfm2_deploy.completion import Completion, TextChunk
    from lfm2_deploy.generate import LanguageModel
    from lfm2_deploy.tokens import CancelSignal

_PROMPT = "> "
_HELP = """\
/reset        begin a new conversation
/system TEXT  set the system's message; without TEXT, show it
/regenerate   answer the last message anew
/edit TEXT    put TEXT in the place of the last message, and answer it
/undo         take back the last message and its answer
/save FILE    write the conversation to a JSON file
/help         show this
/exit         leave, as Ctrl-D does"""


@options.takes_generation_options
def chat(
    bundle: options.BundlePath,
    *,
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A message that tells the model how to behave."),
    ] = None,
    overrides: dict[str, Any],
    prompt_cache: options.PromptCacheFolder = None,
    threads: options.Threads = None,
    device: options.Device = None,
    canary: options.Canary = None,
) -> None:
    """Talk with a model.

    Ctrl-C stops a running answer, Ctrl-D leaves; /help lists what else there is, such
    as /undo, /edit, /regenerate and /save. Where stdin is no terminal, each of its
    lines is a message. Unless told otherwise, tokens are chosen as the model's
    generation_config.json says.

    \b
    Examples:
      lfm2-deploy chat ./LFM2-350M-cpu-int4
      lfm2-deploy chat ./LFM2-350M-cpu-int4 --system "Answer in one sentence."
      echo "Name three rivers." | lfm2-deploy chat ./LFM2-350M-cpu-int4

    \b
    See also:
      lfm2-deploy export MODEL        make a BUNDLE
      lfm2-deploy generate BUNDLE     continue text; for scripts, with --json
    """
    from lfm2_deploy.bundle import open_bundle

    model = options.load_model(bundle, threads, device, canary, has_option=True)
    options.warn_of_speculation(model, overrides)
    if model.chat_template is None:
        raise TemplateError(
            f"{bundle} has no chat template, so it cannot chat: it is a base model; "
            f'use `lfm2-deploy generate {bundle} "TEXT"`'
        )
    cache = options.open_cache(model, bundle, prompt_cache)
    name = open_bundle(bundle).manifest.model
    talk = _Talk(Conversation(model, overrides, cache, system), name)
    if not talk.run() and not sys.stdin.isatty():
        raise typer.Exit(ERROR)


class _Talk:
    """Reads lines, and answers or obeys them."""

    def __init__(self, conversation: Conversation, name: str) -> None:
        self._conversation, self._name = conversation, name
        self._ended = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/system": self._set_system,
            "/regenerate": self._regenerate,
            "/edit": self._edit,
            "/undo": self._undo,
            "/save": self._save,
            "/help": lambda _: note(_HELP),
            "/exit": self._exit,
        }

    def run(self) -> bool:
        """Go on until the user leaves; return whether every line went well."""
        self._greet(self._conversation.model)
        all_well = True
        while not self._ended:
            line = _read_line()
            if line is None:
                break
            all_well = self._handle(line.strip()) and all_well
        return all_well

    def _greet(self, model: LanguageModel) -> None:
        if sys.stdin.isatty():
            with suppress(ImportError):  # Windows has none, and does without
                import readline  # noqa: F401  input() uses it once it is there
            context = f"{self._name}, context of {model.runtime.context_length:,} tokens"
            note(f"{context}. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.")

    def _handle(self, line: str) -> bool:
        try:
            if line.startswith("/"):
                self._obey(line)
            elif line:
                self._show(lambda cancel: self._conversation.ask(line, cancel))
        except ContextOverflowError as error:
            print_error(
                f"{error}. Nothing is lost: /save FILE keeps this conversation, "
                "/reset begins a new one"
            )
        except (Lfm2DeployError, OSError) as error:
            print_error(str(error))
        else:
            return True
        return False

    def _obey(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        if name not in self._commands:
            raise Lfm2DeployError(f"there is no command {name}: /help lists those there are")
        self._commands[name](argument.strip())

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        note("a new conversation")

    def _set_system(self, text: str) -> None:
        if text:
            self._conversation.system = text
            note("the system's message is set, from the next answer on")
        else:
            note(self._conversation.system or "there is no system's message: /system TEXT sets it")

    def _regenerate(self, _: str) -> None:
        self._show(self._conversation.regenerate)

    def _edit(self, text: str) -> None:
        if not text:
            raise Lfm2DeployError("/edit needs the text that takes the place of the last message")
        self._show(lambda cancel: self._conversation.edit(text, cancel))

    def _undo(self, _: str) -> None:
        self._conversation.undo()
        note("the last message and its answer are taken back")

    def _save(self, name: str) -> None:
        if not name:
            raise Lfm2DeployError("/save needs the name of a file to write")
        file = Path(name).expanduser()
        self._conversation.save(file)
        note(f"saved {len(self._conversation.messages)} messages to {file}")

    def _exit(self, _: str) -> None:
        self._ended = True

    def _show(self, answer: Callable[[CancelSignal], Generator[TextChunk]]) -> None:
        with _interrupts_cancel() as cancel, suppress(KeyboardInterrupt):
            # Closed at once, so that the prompt cache is free for the next message.
            with closing(answer(cancel)) as chunks:
                self._write(chunks)
            return
        # Only a second interrupt leads here; the first lets the stream end by itself.
        write_text("\n")
        note("stopped; this answer is not part of the conversation")

    def _write(self, chunks: Iterator[TextChunk]) -> None:
        for chunk in chunks:
            write_text(chunk.text)
            if chunk.completion is not None:
                write_text("\n")
                note(self._summarize(chunk.completion))

    def _summarize(self, answer: Completion) -> str:
        rate = decode_rate(answer)
        limit = self._conversation.model.runtime.context_length
        parts = [
            f"{len(answer.token_ids)} tokens",
            "" if rate is None else f"{rate:,.1f} tok/s",
            f"first after {format_seconds(answer.prefill_seconds)}",
            f"{answer.reused_tokens:,} tokens reused" if answer.reused_tokens else "",
            *describe_guesses([answer]),
            f"context {answer.prompt_tokens + len(answer.token_ids):,} of {limit:,}",
            {"length": "cut at its limit", "cancelled": "stopped"}.get(answer.finish_reason, ""),
        ]
        return " · ".join(part for part in parts if part)


@contextmanager
def _interrupts_cancel() -> Iterator[Event]:
    """While an answer runs, Ctrl-C sets the event; a second one interrupts for good."""
    cancel = Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


def _read_line() -> str | None:
    """The next line of stdin, or None at its end."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    try:
        return input(_style_prompt()) if sys.stdout.isatty() else _ask_on_stderr()
    except EOFError:
        write_text("\n")
        return None
    except KeyboardInterrupt:
        note("\nCtrl-D or /exit leaves")
        return ""


def _ask_on_stderr() -> str:
    sys.stderr.write(_PROMPT)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _style_prompt() -> str:
    if notes().no_color or notes().color_system is None:
        return _PROMPT
    # \1 and \2 tell readline which characters take no room.
    return f"\1\033[1;36m\2{_PROMPT}\1\033[0m\2" if "readline" in sys.modules else _PROMPT
