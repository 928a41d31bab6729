"""What an answer must follow, from the options that say so. Knows files, and no model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lfm2_deploy.errors import GrammarError

if TYPE_CHECKING:
    from lfm2_deploy.grammar import Grammar


def read_grammar(schema: Path | None, file: Path | None, regex: str | None) -> Grammar | None:
    """The grammar of the one option that is given, checked as far as that needs no model.

    Args:
        schema, file, regex: of `--schema`, `--grammar` and `--regex`.

    Raises:
        typer.BadParameter: several are given.
        GrammarError: it cannot be read or used; begins with the option.
    """
    from lfm2_deploy.grammar import Grammar

    if sum(given is not None for given in (schema, file, regex)) > 1:
        raise typer.BadParameter("--schema, --grammar and --regex are three ways: choose one")
    if schema is not None:
        with _naming(f"--schema {schema}"):
            return _check_grammar(Grammar.json_schema(_read_text(schema)))
    if file is not None:
        with _naming(f"--grammar {file}"):
            if file.suffix.lower() == ".gbnf":
                raise GrammarError(
                    "this is GBNF, which is not read: write it in Lark (rule: ..., not "
                    "rule ::= ...)"
                )
            return _check_grammar(Grammar.lark(_read_text(file)))
    if regex is None:
        return None
    with _naming("--regex"):
        return _check_grammar(Grammar.regex(regex))


def _check_grammar(grammar: Grammar) -> Grammar:
    """The grammar, of which nothing is wrong that shows without a model."""
    from lfm2_deploy.registry import GRAMMAR_CHECK

    GRAMMAR_CHECK.load()(grammar)
    return grammar


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Begin what is wrong with a grammar with the option that it came by."""
    try:
        yield
    except GrammarError as error:
        raise GrammarError(f"{option}: {error}") from error


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GrammarError("this is not UTF-8 text: convert it first") from error
    except OSError as error:
        raise GrammarError(f"it cannot be read ({error.strerror or error})") from error
