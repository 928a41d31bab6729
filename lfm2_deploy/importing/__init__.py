"""What others have converted already -> bundles, or one line that says why not."""
