"""The two official submission files: writing them, and checking any such file."""
