"""Models that others have converted already, made into bundles with their numbers kept."""
