"""Weights from a folder, the Hub or a seed, read one tensor at a time."""

from lfm2_deploy.checkpoint.source import open_checkpoint

__all__ = ["open_checkpoint"]
