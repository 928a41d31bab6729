"""How far one set of logits is from another."""
