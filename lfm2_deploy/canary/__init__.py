"""Short prompts with what their logits must be: recorded at export, checked where a bundle runs."""
