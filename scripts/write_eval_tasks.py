"""Write the data of `eval`'s own tasks: python scripts/write_eval_tasks.py TEXT

TEXT is the demo model's held-out text, documents separated by <|endoftext|>. Taken are its
three narratives, Ruth, Jonah and Mark of the World English Bible, which is in the public
domain. Nothing is random: the same text gives the same files, in
lfm2_deploy/evaluation/tasks/.

    last_word.jsonl   a passage without its last word, which occurs in it before (as in LAMBADA,
                      Paperno et al. 2016)
    ending.jsonl      a passage without its last clause, and four clauses to choose from: the
                      right one, and three of about the same length from elsewhere
    passage.jsonl     whole passages
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "lfm2_deploy" / "evaluation" / "tasks"
TITLES = ("Ruth", "Jonah", "Mark")
_SEED = 0
_LEAST_WORDS = 50
_ITEMS = 120
_CHOICES = 4
_PASSAGE_CHARACTERS = 1_500
# Typographic quotation marks, named because they look alike.
_OPENING, _CLOSING = "\u201c\u2018", "\u201d\u2019"
_SENTENCE_END = re.compile(rf"(?<=[.!?])[{_CLOSING}]*\s+(?=[{_OPENING}A-Z])")
_LAST_WORD = re.compile(rf"(.*\s)([A-Za-z]{{4,}})[.!?][{_CLOSING}]*")


@dataclass(frozen=True)
class Passage:
    """Some sentences that follow each other; the last one apart."""

    before: str
    last: str


def list_sentences(document: str) -> list[str]:
    """The sentences of a document, headings left out."""
    paragraphs = [" ".join(part.split()) for part in document.split("\n\n")]
    prose = [part for part in paragraphs if part.endswith((".", "!", "?", *_CLOSING))]
    marked = _SENTENCE_END.sub(lambda match: match.group().rstrip() + "\n", " ".join(prose))
    return marked.split("\n")


def cut_passages(sentences: list[str]) -> Iterator[Passage]:
    """For each sentence, it and as many before it as have at least fifty words."""
    for place in range(1, len(sentences)):
        before: list[str] = []
        while place > len(before) and sum(len(text.split()) for text in before) < _LEAST_WORDS:
            before.insert(0, sentences[place - len(before) - 1])
        if sum(len(text.split()) for text in before) >= _LEAST_WORDS:
            yield Passage(" ".join(before), sentences[place])


def make_last_word(passage: Passage) -> dict[str, Any] | None:
    """An item, where the last word is long enough and occurred before."""
    match = _LAST_WORD.fullmatch(passage.last)
    if match is None or len(match.group(1).split()) < 4:
        return None
    context, word = f"{passage.before} {match.group(1).rstrip()}", match.group(2)
    seen = re.search(rf"\b{word}\b", context)
    return {"context": context, "word": word} if seen else None


def make_ending(passage: Passage) -> dict[str, Any] | None:
    """An item without its wrong choices, where the last clause is neither short nor long."""
    # A closing quotation mark would give away which ending belongs to a speech.
    head, comma, clause = passage.last.rstrip(_CLOSING).rpartition(", ")
    if not comma or not 4 <= len(clause.split()) <= 14 or not head:
        return None
    return {"context": f"{passage.before} {head},", "ending": clause}


def add_choices(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each item its choices: the endings of others that are nearest in length, and its own."""
    source = random.Random(_SEED)
    finished = []
    for item in items:
        own = item["ending"]
        others = sorted({other["ending"] for other in items} - {own})
        source.shuffle(others)
        others.sort(key=lambda ending, own=own: abs(len(ending) - len(own)))
        choices = [own, *others[: _CHOICES - 1]]
        source.shuffle(choices)
        row = {"context": item["context"], "choices": choices, "answer": choices.index(own)}
        finished.append(row)
    return finished


def spread(items: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Some of them, evenly spaced."""
    count = min(count, len(items))
    return [items[at * len(items) // count] for at in range(count)]


def cut_texts(sentences: list[str]) -> Iterator[dict[str, Any]]:
    """Sentences joined to passages of some 1,500 characters."""
    text = ""
    for sentence in sentences:
        text = f"{text} {sentence}".strip()
        if len(text) >= _PASSAGE_CHARACTERS:
            yield {"text": text}
            text = ""


def write(name: str, items: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    lines = [json.dumps(item, ensure_ascii=False) for item in items]
    (OUT / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {len(lines)} items")


def main() -> None:
    """Read the text, write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    documents = parser.parse_args().text.read_text(encoding="utf-8").split("<|endoftext|>")
    named = {document.strip().partition("\n")[0]: document for document in documents}
    books = [list_sentences(named[title]) for title in TITLES]
    passages = [passage for book in books for passage in cut_passages(book)]
    words = [item for passage in passages if (item := make_last_word(passage))]
    endings = [item for passage in passages if (item := make_ending(passage))]
    write("last_word.jsonl", spread(words, _ITEMS))
    write("ending.jsonl", add_choices(spread(endings, _ITEMS)))
    write("passage.jsonl", spread([text for book in books for text in cut_texts(book)], 24))


if __name__ == "__main__":
    main()
