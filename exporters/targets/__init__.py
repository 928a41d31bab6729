"""One file a target: which operators it gets, by which passes, in which precisions."""
