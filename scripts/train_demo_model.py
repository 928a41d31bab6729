"""Train the demo model: a small LFM2-MoE of the family's true structure.

    python scripts/train_demo_model.py TRAIN.txt EVAL.txt --out lfm2_deploy/demo/lfm2-demo-9m

`--config config.json` trains another shape of the family instead, dense or a mixture, such as
`scripts/dense_26m.json`, on which the figures of a larger model in docs/quantization.md were
measured; `--out` must hold the tokenizer's files then, too.

Needs torch. Two thirds of each batch are plain windows of the text; the rest are
chats in LFM2's format, in which the user gives a passage's opening and the assistant
continues it, so that `chat` and stop tokens mean something on this model too.

Matrices learn by Muon, the rest by AdamW. The router's bias is moved by the load of
each expert (auxiliary-loss-free balancing, arXiv 2408.15664), never by a gradient.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from lfm2_deploy.config import Lfm2Config, parse_config
from lfm2_deploy.model.decoder import Decoder, checkpoint_name, empty_states
from lfm2_deploy.model.moe import Router

CONFIG = {
    "architectures": ["Lfm2MoeForCausalLM"],
    "model_type": "lfm2_moe",
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "layer_types": [
        "conv",
        "conv",
        "full_attention",
        "conv",
        "conv",
        "full_attention",
        "conv",
        "full_attention",
    ],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 768,
    "conv_L_cache": 3,
    "conv_bias": False,
    "norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "num_dense_layers": 2,
    "use_expert_bias": True,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
    "dtype": "float16",
}
IGNORED = -100
BIAS_STEP = 1e-3


class Batches:
    """Random windows and chats of one length, as (inputs, targets)."""

    def __init__(self, text: str, tokenizer: Tokenizer, length: int, seed: int) -> None:
        paragraphs = [p for p in text.split("\n\n") if len(p) > 200]
        self.paragraphs = [self._split(p) for p in paragraphs]
        self.paragraphs = [p for p in self.paragraphs if p]
        self.tokenizer, self.length, self.random = tokenizer, length, random.Random(seed)
        self.stream = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)

    @staticmethod
    def _split(paragraph: str) -> list[str]:
        parts = paragraph.replace("! ", "!\0").replace("? ", "?\0").replace(". ", ".\0").split("\0")
        return parts if len(parts) > 1 else []

    def take(self, rows: int) -> tuple[Tensor, Tensor]:
        """int64 [rows, length] inputs and targets."""
        samples = [self._chat() if i % 3 == 2 else self._window() for i in range(rows)]
        inputs, targets = zip(*samples, strict=True)
        return torch.stack(inputs), torch.stack(targets)

    def _window(self) -> tuple[Tensor, Tensor]:
        at = self.random.randrange(len(self.stream) - self.length)
        tokens = torch.cat([torch.tensor([1]), self.stream[at : at + self.length]])
        return tokens[:-1], tokens[1:]

    def _chat(self) -> tuple[Tensor, Tensor]:
        ids: list[int] = []
        while len(ids) <= self.length:
            parts = self.random.choice(self.paragraphs)
            cut = self.random.randrange(1, len(parts))
            opening, rest = " ".join(parts[:cut][-3:]), " ".join(parts[cut : cut + 4])
            chat = (
                f"<|startoftext|><|im_start|>user\n{opening}<|im_end|>\n"
                f"<|im_start|>assistant\n{rest}<|im_end|>\n"
            )
            ids += self.tokenizer.encode(chat, add_special_tokens=False).ids
        tokens = torch.tensor(ids[: self.length + 1])
        targets = tokens[1:].clone()
        targets[targets == 1] = IGNORED
        return tokens[:-1], targets


def build_model(config: Lfm2Config) -> Decoder:
    """A freshly initialised decoder; residual outputs start small."""
    model = Decoder(config)
    for name, parameter in model.named_parameters():
        if name.endswith("conv.conv.weight"):
            nn.init.uniform_(parameter, -0.5, 0.5)
        elif parameter.dim() == 2:
            residual = name.endswith(("out_proj.weight", "w2.weight"))
            scale = 1 / math.sqrt(2 * config.num_hidden_layers) if residual else 1.0
            nn.init.normal_(parameter, std=scale * 0.03)
    return model


def make_optimizers(model: Decoder, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for everything else."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    matrices = {n for n, p in trained.items() if p.dim() == 2 and n.startswith("layers.")}
    matrices -= {n for n in matrices if ".gate." in n}
    muon = torch.optim.Muon(
        [trained[n] for n in sorted(matrices)],
        lr=rate,
        weight_decay=0.05,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    rest = [p for n, p in trained.items() if n not in matrices]
    return [muon, torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)]


class LoadBalancer:
    """Counts how often each expert is chosen and moves the router's bias against it."""

    def __init__(self, model: Decoder) -> None:
        self.counts: dict[Router, Tensor] = {}
        for module in model.modules():
            if isinstance(module, Router):
                module.register_forward_hook(self._count)
        self.chosen = model.config.moe.num_experts_per_tok if model.config.moe else 0

    def _count(self, router: Router, _: object, output: tuple[Tensor, Tensor]) -> None:
        scores = output[0].detach()
        picked = scores.topk(self.chosen, dim=-1).indices.flatten()
        self.counts[router] = torch.bincount(picked, minlength=scores.shape[-1]).float()

    @torch.no_grad()
    def step(self) -> float:
        """Move every bias; return the worst load over the mean, 0 where there are no experts."""
        worst = 0.0
        for router, counts in self.counts.items():
            assert router.expert_bias is not None
            router.expert_bias += BIAS_STEP * (counts.mean() - counts).sign()
            worst = max(worst, float(counts.max() / counts.mean()))
        return worst


def compute_logits(model: Decoder, inputs: Tensor) -> Tensor:
    """Logits [B, S, V] of whole rows from an empty state."""
    rows, length = inputs.shape
    past = torch.zeros(rows, dtype=torch.int64)
    states = empty_states(model.config, rows, length)
    return model(inputs, states, past, torch.full_like(past, length))[0]


@torch.no_grad()
def evaluate(model: Decoder, text: str, tokenizer: Tokenizer, length: int) -> dict[str, float]:
    """Perplexity per token and bits per byte over whole windows of `text`."""
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    rows = ids[: len(ids) // length * length].view(-1, length)
    inputs = torch.cat([torch.ones(len(rows), 1, dtype=torch.int64), rows[:, :-1]], dim=1)
    total = 0.0
    for part, target in zip(inputs.split(8), rows.split(8), strict=True):
        logits = compute_logits(model, part)
        total += float(F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum"))
    size = len(tokenizer.decode(rows.flatten().tolist()).encode())
    return {
        "perplexity": math.exp(total / rows.numel()),
        "bits_per_byte": total / math.log(2) / size,
    }


def learning_rate(step: int, steps: int) -> float:
    """Warm up, stay, and fall linearly to nothing over the last 60 %."""
    return min(1.0, (step + 1) / 60, max(0.02, (steps - step) / (0.6 * steps)))


def train(model: Decoder, batches: Batches, steps: int, rows: int, rate: float) -> None:
    """Run the whole schedule, printing the loss every 20 steps."""
    optimizers, balancer = make_optimizers(model, rate), LoadBalancer(model)
    started, smoothed = time.monotonic(), 0.0
    for step in range(steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate(step, steps)
        inputs, targets = batches.take(rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = compute_logits(model, inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        worst = balancer.step()
        value = loss.item()
        smoothed = 0.9 * smoothed + 0.1 * value if smoothed else value
        if step % 10 == 0 or step == steps - 1:
            speed = (step + 1) * inputs.numel() / (time.monotonic() - started)
            print(
                f"{step}/{steps} loss {smoothed:.3f} load {worst:.2f} {speed:.0f} tok/s", flush=True
            )


def save_checkpoint(model: Decoder, config: dict[str, object], folder: Path) -> None:
    """Write config.json and model.safetensors (float16; router and its bias float32)."""
    tensors = {}
    for name, parameter in model.named_parameters():
        exact = ".router." in name
        tensors[checkpoint_name(name)] = parameter.detach().to(
            torch.float32 if exact else torch.float16
        )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("eval", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="holds tokenizer.json")
    parser.add_argument("--config", type=Path, help="of another shape (default: the demo model)")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    text = args.train.read_text(encoding="utf-8")
    config = json.loads(args.config.read_text(encoding="utf-8")) if args.config else CONFIG
    model = build_model(parse_config(config))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    train(model, Batches(text, tokenizer, args.length, args.seed), args.steps, args.rows, args.rate)
    save_checkpoint(model, config, args.out)
    scores = evaluate(model, args.eval.read_text(encoding="utf-8"), tokenizer, args.length)
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
