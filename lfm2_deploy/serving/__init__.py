"""One model, many requests: a queue, a running batch that requests join, an engine to embed."""
