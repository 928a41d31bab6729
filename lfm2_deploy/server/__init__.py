"""HTTP over `serving`: OpenAI-compatible endpoints, metrics, a page to chat in."""
