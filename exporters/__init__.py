"""Checkpoint -> bundle: trace blocks, stitch them, lower them to a target, stream the weights."""
