"""What a model writes, taken apart: text, reasoning, calls of tools; and conversations put in."""
