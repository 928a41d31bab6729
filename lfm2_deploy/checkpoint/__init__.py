"""Weights from a folder, the Hub or a seed, read one tensor at a time."""

from lfm2_deploy.checkpoint.source import describe_model, open_checkpoint

__all__ = ["describe_model", "open_checkpoint"]
