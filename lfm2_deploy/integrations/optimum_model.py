"""A bundle's graph as optimum-onnx's causal language model: `generate` of transformers over it.

What enters are token ids, an attention mask and the states of the call before; what leaves are
logits and new states. optimum-onnx 0.1 knows only keys and values, so states are found here: what
the graph takes beside ids, mask and `logits_to_keep`, in the order in which it gives them out.

Padding may lie at either side, or anywhere: tokens whose mask is 0 are left out, and rows handed to
the graph right-padded with -1, as it wants them. So padding reaches no state.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optimum.onnx.utils import _get_model_external_data_paths
from optimum.onnxruntime import ORTModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from lfm2_deploy.errors import BundleError, GenerationError, RuntimeUnavailableError
from lfm2_deploy.integrations.optimum_config import register_moe_config

IDS, MASK, KEEP, LOGITS = "input_ids", "attention_mask", "logits_to_keep", "logits"
_PROVIDER = "CPUExecutionProvider"
_PADDING = -1
_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}

register_moe_config()


@dataclass(frozen=True, slots=True)
class States:
    """What one call hands to the next.

    Args:
        tensors: the states, in the graph's order; batch is their first axis.
        seen: how many columns of the attention mask they stand for.
    """

    tensors: tuple[torch.Tensor, ...]
    seen: int

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the attention mask so far, as transformers asks a cache."""
        return self.seen

    def select(self, rows: torch.Tensor) -> States:
        """The states of these rows; a row may come several times."""
        return States(tuple(tensor.index_select(0, rows) for tensor in self.tensors), self.seen)


@dataclass(frozen=True, slots=True)
class _Port:
    """A state of the graph: names, shape with text for what is dynamic, element type."""

    input: str
    output: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype

    def make_empty(self, batch_size: int) -> torch.Tensor:
        """The state of rows that hold nothing."""
        sizes = [0 if isinstance(size, str) else size for size in self.shape[1:]]
        return torch.zeros((batch_size, *sizes), dtype=self.dtype)

    def make_room(self, state: torch.Tensor, count: int) -> torch.Tensor:
        """The state with places for at least so many tokens, where it has a place for each."""
        if len(self.shape) != 4 or state.shape[2] >= count:
            return state
        return torch.nn.functional.pad(state, (0, 0, 0, count - state.shape[2]))


class Lfm2ORTModelForCausalLM(ORTModelForCausalLM):  # type: ignore[misc]
    """`ORTModelForCausalLM` with conv states, made by `from_pretrained` of a bundle for target cpu.

    Greedy search, sampling and beams work, in batches. What takes tokens back (assisted generation,
    prompt lookup, contrastive search) is refused by transformers, since conv states cannot go back.
    """

    _is_stateful = True

    def __init__(self, *, session: Any, use_io_binding: bool | None = None, **options: Any) -> None:
        _check_provider(session.get_providers()[0], use_io_binding)
        self._ports = _find_ports(session)
        super().__init__(session=session, use_io_binding=False, **options)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: States | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        inputs_embeds: torch.Tensor | None = None,
        **ignored: Any,
    ) -> CausalLMOutputWithPast:
        """Append tokens to each row.

        Args:
            input_ids: int64 [B, S], the new tokens.
            attention_mask: int64 [B, T], the tokens of former calls included; 0 for padding.
            past_key_values: what the call before returned.
            use_cache: whether to return states; None for what the config says.
            logits_to_keep: of how many last tokens of each row logits are wanted; 0 for a place
                for each of `input_ids`, which is all zeros where there is padding.
            inputs_embeds: refused, as the graph begins with ids.
            **ignored: what transformers hands to any model, such as `cache_position`.

        Returns:
            `logits` float32 [B, S, V] or [B, logits_to_keep, V], and `past_key_values`.

        Raises:
            GenerationError: shapes do not fit together, or a row has no token at all.
        """
        if inputs_embeds is not None:
            raise GenerationError("inputs_embeds cannot be used: the graph begins with input_ids")
        seen = 0 if past_key_values is None else past_key_values.seen
        mask = _complete_mask(input_ids, attention_mask, seen)
        rows = _Rows.align(input_ids, mask[:, seen:])
        total = mask.sum(1)
        if int(total.min()) == 0 or rows.width == 0:
            raise GenerationError("a row has no token: its attention_mask is all zeros")
        keep = min(logits_to_keep or rows.width, rows.width)
        past = past_key_values or States(
            tuple(port.make_empty(len(input_ids)) for port in self._ports), 0
        )
        logits, states = self._run(rows, total, keep, past)
        if not logits_to_keep:
            logits = rows.put_back(logits)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        new = States(states, mask.shape[1]) if use_cache else None
        return CausalLMOutputWithPast(logits=logits, past_key_values=new)  # type: ignore[call-arg]

    def _run(
        self, rows: _Rows, total: torch.Tensor, keep: int, past: States
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """One call of the graph: logits [B, keep, V] and the new states."""
        longest = int(total.max())
        ones = torch.arange(longest) < total[:, None]
        feeds = {IDS: rows.ids.numpy(), MASK: ones.long().numpy(), KEEP: np.array([keep], np.int64)}
        # A row that holds many tokens and gets few: the kernel wants room for its padding, too.
        room = int((total - rows.real.sum(1)).max()) + rows.width
        for port, state in zip(self._ports, past.tensors, strict=True):
            roomy = port.make_room(state, room) if room > longest else state
            feeds[port.input] = roomy.numpy()
        names = [LOGITS, *(port.output for port in self._ports)]
        logits, *present = map(torch.from_numpy, self.session.run(names, feeds))
        return logits, tuple(present)

    def save_session(self, save_directory: str | Path) -> None:
        """Copy graph and weights as they lie to each other: weights may be in a folder below.

        optimum-onnx 0.1.0 drops that folder, and the copied graph then looks for it in vain.
        """
        folder = self.path.parent
        for file in (self.path, *_get_model_external_data_paths(self.path)):
            target = Path(save_directory, file.relative_to(folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)

    @staticmethod
    def _reorder_cache(past_key_values: States, beam_idx: torch.Tensor) -> States:
        """Beams continue the rows they are told to: of every state, conv states too."""
        return past_key_values.select(beam_idx.cpu())


@dataclass(frozen=True, slots=True)
class _Rows:
    """New tokens as the graph wants them.

    Args:
        ids: int64 [B, W], each row's tokens, then -1.
        real: bool [B, S], which of the given places hold tokens.
    """

    ids: torch.Tensor
    real: torch.Tensor

    @classmethod
    def align(cls, input_ids: torch.Tensor, mask: torch.Tensor) -> _Rows:
        """Move each row's tokens to its beginning, in their order."""
        real = mask.bool()
        order = torch.argsort((~real).long(), dim=1, stable=True)
        counts = real.sum(1)
        ids = input_ids.cpu().gather(1, order)[:, : int(counts.max())]
        places = torch.arange(ids.shape[1])
        return cls(ids.masked_fill(places >= counts[:, None], _PADDING).contiguous(), real)

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return self.ids.shape[1]

    def put_back(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [B, W, V], each row's at its end -> [B, S, V], each at its token's place."""
        if bool(self.real.all()):
            return logits
        counts = self.real.sum(1, keepdim=True)
        source = (self.width - counts + self.real.cumsum(1) - 1).clamp(0)
        found = logits.gather(1, source[..., None].expand(-1, -1, logits.shape[-1]))
        return found * self.real[..., None]


def _complete_mask(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, seen: int
) -> torch.Tensor:
    """int64 [B, T] on the CPU."""
    shape = (input_ids.shape[0], seen + input_ids.shape[1])
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.int64)
    if tuple(attention_mask.shape) != shape:
        raise GenerationError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected {shape}: a place "
            f"for each of {seen} tokens of former calls and {shape[1] - seen} new ones"
        )
    return attention_mask.cpu().long()


def _check_provider(provider: str, use_io_binding: bool | None) -> None:
    if provider != _PROVIDER:
        raise RuntimeUnavailableError(
            f"provider {provider} was asked for, and a bundle that optimum-onnx loads is made for "
            f"{_PROVIDER}; leave provider out, or use lfm2_deploy.load for other devices"
        )
    if use_io_binding:
        raise RuntimeUnavailableError(
            "use_io_binding=True is not made for LFM2's conv states; leave it out, or use "
            "lfm2_deploy.load, which binds them"
        )


def _find_ports(session: Any) -> tuple[_Port, ...]:
    """The states of a graph, in order.

    Raises:
        BundleError: it is not a graph for target cpu as this package makes it.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    states = [one for one in inputs if one.name not in (IDS, MASK)]
    # `logits_to_keep` has a default, so onnxruntime lists it apart.
    keep = any(one.name == KEEP for one in session.get_overridable_initializers())
    known = keep and len(inputs) - len(states) == 2 and outputs[0].name == LOGITS
    if not known or not 0 < len(states) < len(outputs):
        file, names = Path(session._model_path), ", ".join(one.name for one in inputs[:4])
        raise BundleError(
            f"{file} has inputs {names} ..., expected {IDS}, {MASK}, {KEEP} and states: export the "
            "model with `lfm2-deploy export --target cpu`, or with `optimum-cli export onnx`"
        )
    pairs = zip(states, outputs[1:], strict=False)
    return tuple(_Port(i.name, o.name, tuple(i.shape), _DTYPES[i.type]) for i, o in pairs)
