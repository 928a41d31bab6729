"""Somebody else's export -> a bundle that runtimes here run, or one line that says why not."""
