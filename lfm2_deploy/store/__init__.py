"""Models on this machine, by name: fetched, listed, removed.

    models/
      NAME/                 a bundle, whole: its hashes were checked before it was moved here
      .incoming/NAME/       what an unfinished pull has so far; the same pull goes on with it
      .records/NAME.json    where it came from; NAME.used is touched at every load
      .locks/               held by who pulls, loads or removes
      .trash/               what is being removed

Knows how bundles are exported, downloaded and opened, and nothing of how they are run.
"""
