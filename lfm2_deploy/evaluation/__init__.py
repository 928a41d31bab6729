"""Tasks of lm-evaluation-harness, run through any runtime."""
