"""A checkpoint of two layers: python make_checkpoint.py FOLDER; see README.md."""

import sys

import torch
from transformers import Lfm2Config, Lfm2ForCausalLM

config = Lfm2Config(
    vocab_size=64,
    hidden_size=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_hidden_layers=2,
    layer_types=["full_attention", "conv"],
    intermediate_size=32,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=7,
    pad_token_id=0,
    block_auto_adjust_ff_dim=False,
)
model = Lfm2ForCausalLM(config).eval()
generator = torch.Generator().manual_seed(0)
for name, tensor in model.named_parameters():
    noise = torch.randn(tensor.shape, generator=generator)
    if name.endswith("norm.weight"):
        noise = 1 + 0.3 * noise
    elif "embed_tokens" not in name:
        noise = 1.5 * noise / tensor.shape[-1] ** 0.5
    tensor.data.copy_(noise)
model.save_pretrained(sys.argv[1])
