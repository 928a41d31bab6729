"""A conversation with a model: turns, and what may be done with them.

Enters: messages of a user. Leaves: streams of answers. Knows nothing of terminals.
A turn is kept when its answer is; whatever fails leaves the conversation as it was.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm2_deploy.commands.options import fit_length
from lfm2_deploy.errors import GenerationError

if TYPE_CHECKING:
    from lfm2_deploy.completion import TextChunk
    from lfm2_deploy.generate import LanguageModel
    from lfm2_deploy.prompt_cache import PromptCache
    from lfm2_deploy.tokens import CancelSignal

Turns = list[dict[str, str]]


class Conversation:
    """Turns of a user and a model, and perhaps a system message before them."""

    def __init__(
        self,
        model: LanguageModel,
        overrides: dict[str, Any],
        cache: PromptCache,
        system: str | None = None,
    ) -> None:
        """Begin an empty one.

        Args:
            model: one with a chat template.
            overrides: options of `LanguageModel.stream`.
            cache: holds what was computed for earlier turns.
            system: the system's message.
        """
        self.model = model
        self.system = system
        self.turns: Turns = []
        self._overrides, self._cache = overrides, cache

    @property
    def messages(self) -> Turns:
        """All of it, as a chat template takes it."""
        return self._with_system(self.turns)

    def ask(self, text: str, cancel: CancelSignal) -> Generator[TextChunk]:
        """Answer a message of the user.

        Args:
            text: the message.
            cancel: ends the answer early once set; what was said is kept.

        Raises:
            GenerationError, TemplateError: at once, and nothing is changed.
        """
        return self._answer([*self.turns, _say("user", text)], cancel)

    def regenerate(self, cancel: CancelSignal) -> Generator[TextChunk]:
        """Answer the last message of the user anew; see `ask`."""
        self._check_begun()
        return self._answer(self.turns[:-1], cancel)

    def edit(self, text: str, cancel: CancelSignal) -> Generator[TextChunk]:
        """Put another message in the place of the user's last, and answer it; see `ask`."""
        self._check_begun()
        return self._answer([*self.turns[:-2], _say("user", text)], cancel)

    def undo(self) -> None:
        """Take back the last message and its answer.

        Raises:
            GenerationError: there is none.
        """
        self._check_begun()
        self.turns = self.turns[:-2]

    def reset(self) -> None:
        """Forget all turns; the system's message stays."""
        self.turns = []

    def save(self, file: Path) -> None:
        """Write the messages as JSON.

        Raises:
            GenerationError: nothing was said, the file exists, or cannot be written.
        """
        self._check_begun()
        try:
            with file.open("x", encoding="utf-8") as stream:
                json.dump({"messages": self.messages}, stream, indent=2, ensure_ascii=False)
                stream.write("\n")
        except FileExistsError as error:
            raise GenerationError(f"{file} exists; choose another name") from error
        except OSError as error:
            raise GenerationError(
                f"{file} cannot be written ({error.strerror or error}): choose another place"
            ) from error

    def _check_begun(self) -> None:
        if not self.turns:
            raise GenerationError("there is no answer yet: say something first")

    def _with_system(self, turns: Turns) -> Turns:
        return turns if self.system is None else [_say("system", self.system), *turns]

    def _answer(self, turns: Turns, cancel: CancelSignal) -> Generator[TextChunk]:
        ids = self.model.encode_prompt(self._with_system(turns))
        asked = self._overrides.get("max_new_tokens")
        length = fit_length(self.model, [ids], asked)
        changes = {**self._overrides, "max_new_tokens": length}
        return self._keep(
            turns, self.model.stream(ids, cancel=cancel, cache=self._cache, **changes)
        )

    def _keep(self, turns: Turns, chunks: Iterator[TextChunk]) -> Generator[TextChunk]:
        for chunk in chunks:
            answer = chunk.completion
            if answer is not None and (answer.text or answer.finish_reason != "cancelled"):
                self.turns = [*turns, _say("assistant", answer.text)]
            yield chunk


def _say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
