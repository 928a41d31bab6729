"""What an answer must follow, as a plain value."""
