"""Weights from a folder, the Hub or a seed, read one tensor at a time."""

from lfm2_deploy.checkpoint.source import describe_model, is_hub_id, open_checkpoint

__all__ = ["describe_model", "is_hub_id", "open_checkpoint"]
