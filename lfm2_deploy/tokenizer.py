"""Text <-> token ids, for byte-level BPE tokenizers such as LFM2's.

Enters: a folder with tokenizer.json. Leaves: ids of a text, bytes and text of ids,
and a stream that turns ids into text as they arrive. Knows nothing of models or chats.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import tokenizers

from lfm2_deploy.errors import BundleError, GenerationError
from lfm2_deploy.json_file import read_json_object

# Characters that are encoded at once to see how many tokens they are.
_PIECE = 65_536
_FEW_CHARACTERS = 4
# From so many characters on, encoding must not keep other threads from running.
_LONG = 4_096
# Characters of one to four bytes, and spaces where a decoder might drop one.
_PROBE = " a é漢 🙂  b\n"


class Tokenizer:
    """Encodes text and decodes ids; ids the tokenizer does not have decode to nothing.

    A model's vocabulary is often wider than its tokenizer's (LFM2: 65,536 against
    64,400), so such ids can be sampled.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
        """Wrap a tokenizer of the `tokenizers` library.

        Args:
            backend: the tokenizer; its truncation and padding are switched off.
            special_tokens: role -> text, such as "bos_token" -> "<|startoftext|>".

        Raises:
            BundleError: it is not a byte-level tokenizer.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._bytes: dict[int, bytes] = {}
        self.special_tokens = dict(special_tokens)
        ids = backend.encode(_PROBE, add_special_tokens=False).ids
        if not self.decode(ids, skip_special_tokens=False) == backend.decode(ids) == _PROBE:
            raise BundleError(
                "tokenizer.json is not a byte-level tokenizer, as every LFM2 model has; "
                "take the file from the model's own repository"
            )

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json and, where present, the special tokens of tokenizer_config.json.

        Args:
            folder: a bundle or a checkpoint.

        Raises:
            BundleError: tokenizer.json is missing, or either file is damaged.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise BundleError(
                f"no tokenizer.json in {folder}; copy it from the model's repository, "
                "or pass the folder that holds it"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise BundleError(f"{file} cannot be read ({error}); download it again") from error
        special = read_special_tokens(folder)
        start = backend.encode("").ids
        if start and "bos_token" not in special:
            # Chat templates print bos_token; without a config only the post-processor tells it.
            special["bos_token"] = backend.id_to_token(start[0]) or ""
        return cls(backend, special)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._backend.get_vocab_size())

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens marked special: left out of text unless asked for."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """Text -> id of the tokens that are found in a text before all others, special or not."""
        added = self._backend.get_added_tokens_decoder()
        return {token.content: int(token_id) for token_id, token in added.items()}

    def to_json(self) -> str:
        """The text of a tokenizer.json, for other libraries that read one."""
        return str(self._backend.to_str())

    def token_id(self, token: str) -> int | None:
        """The id of a token such as "<|im_end|>"; None when there is no such token."""
        found = self._backend.token_to_id(token)
        return None if found is None else int(found)

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of one token, which may be a part of a character."""
        if token_id not in self._bytes:
            known = 0 <= token_id < self.vocab_size
            token = self._backend.id_to_token(token_id) if known else None
            self._bytes[token_id] = _to_bytes(token or "")
        return self._bytes[token_id]

    def token_text(self, token_id: int) -> str:
        """One token's text; bytes that are no whole character show as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text.

        Special tokens written out in the text become their ids in either case.

        Args:
            text: any Unicode text.
            add_special_tokens: let the tokenizer put its start token in front. Rendered
                chats already begin with one: encode them with False.

        Raises:
            GenerationError: the text holds half of a surrogate pair.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise GenerationError(
                f"the text is not valid Unicode: character {error.start} is half of a surrogate "
                f"pair (U+{ord(text[error.start]):04X}); remove it"
            ) from error
        if len(text) < _LONG:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        # The same ids, and other threads may go on meanwhile: a megabyte takes half a second.
        encoded = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoded[0].ids)

    def exceeds(self, text: str, most: int) -> bool:
        """Whether a text surely has more than so many tokens; without encoding all of it.

        A text of megabytes takes half a minute and gigabytes to encode. So it is read in pieces,
        and no further than it matters. Cuts between pieces may add a few tokens; a text is said
        to exceed only where it does so twice over.

        Args:
            text: any text.
            most: tokens.

        Returns:
            False also where that is not sure, as for every text of a few characters a token.
        """
        if len(text) <= max(_PIECE, _FEW_CHARACTERS * most):
            return False
        count = 0
        for start in range(0, len(text), _PIECE):
            piece = text[start : start + _PIECE]
            count += len(self.encode(piece, add_special_tokens=False))
            if count > 2 * most:
                return True
        return False

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are not valid UTF-8 become U+FFFD.

        Args:
            ids: token ids; unknown ones decode to nothing.
            skip_special_tokens: leave tokens such as <|im_end|> out.
        """
        skipped = self.special_ids if skip_special_tokens else frozenset()
        parts = (self.token_bytes(token_id) for token_id in ids if token_id not in skipped)
        return b"".join(parts).decode("utf-8", "replace")


class TextStream:
    """Decodes ids one at a time; every piece of text it gives out is whole characters.

    The pieces joined equal `Tokenizer.decode` of all ids. Each token costs its own
    bytes only, since a byte-level token means the same bytes wherever it stands.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        kept: frozenset[int] = frozenset(),
    ) -> None:
        """Begin a stream.

        Args:
            tokenizer: whose ids will come.
            skip_special_tokens: leave tokens such as <|im_end|> out.
            kept: special tokens that stay in the text in any case.
        """
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids - kept if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text this token completes; "" while a character is unfinished."""
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """End the stream: U+FFFD for a character left unfinished, else ""."""
        return self._decoder.decode(b"", final=True)


def read_special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that tokenizer_config.json names, by role.

    Args:
        folder: a bundle or a checkpoint; the file may be absent.

    Raises:
        BundleError: the file is not a JSON object.
    """
    tokens = {}
    for name, value in read_tokenizer_config(folder).items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def read_tokenizer_config(folder: Path) -> dict[str, object]:
    """tokenizer_config.json, or an empty object where there is none.

    Raises:
        BundleError: the file is not a JSON object.
    """
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    return read_json_object(file, BundleError, "download it again")


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's alphabet: the printable character that stands for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {0x100 + n: byte for n, byte in enumerate(others)}
    return {chr(c): b for c, b in ({byte: byte for byte in printable} | stand_ins).items()}


_BYTES = _byte_alphabet()


def _to_bytes(token: str) -> bytes:
    # An added token may hold characters outside the alphabet: it then stands for itself.
    if all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    return token.encode("utf-8")
