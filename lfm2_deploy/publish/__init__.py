"""A bundle goes up to the Hugging Face Hub."""
