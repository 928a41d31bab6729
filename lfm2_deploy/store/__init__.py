"""Models on this machine, by name: fetched, listed, removed."""
