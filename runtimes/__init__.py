"""Runtime adapters: a bundle's graph, run behind `contracts.Runtime`."""
