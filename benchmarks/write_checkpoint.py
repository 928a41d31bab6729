"""A model this package can read -> a Hugging Face folder that others read, for benchmarks.

    python benchmarks/write_checkpoint.py synthetic:LFM2-350M /tmp/lfm2-350m-hf --tokenizer DIR

Tensors are written one at a time, in bfloat16, in shards of about 2 GB. Peers want a
tokenizer; random weights have none, so any LFM2 model's will do.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.weights import list_weights

SHARD_BYTES = 2 * 10**9


def write(source: str, folder: Path) -> None:
    """Write config, shards and their index."""
    checkpoint = open_checkpoint(source)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**checkpoint.raw_config, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shard: dict[str, torch.Tensor] = {}
    places: dict[str, str] = {}
    for spec in list_weights(checkpoint.config):
        # transformers keeps the routing bias in float32.
        dtype = torch.float32 if spec.role == "bias" else torch.bfloat16
        shard[spec.name] = torch.from_numpy(checkpoint.read(spec.name)).to(dtype)
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            flush(shard, places, folder)
    flush(shard, places, folder)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def flush(shard: dict[str, torch.Tensor], places: dict[str, str], folder: Path) -> None:
    """Write a shard and empty it."""
    if not shard:
        return
    name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
    save_file(shard, folder / name, metadata={"format": "pt"})
    places.update(dict.fromkeys(shard, name))
    shard.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="as `lfm2-deploy export` takes a model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer files to copy")
    args = parser.parse_args()
    write(args.source, args.folder)
    if args.tokenizer:
        for file in args.tokenizer.glob("*token*.json"):
            shutil.copyfile(file, args.folder / file.name)


if __name__ == "__main__":
    main()
