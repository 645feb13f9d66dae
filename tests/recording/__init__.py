"""Records the README's animation from a real run: `python -m tests.recording`, or `make recording`."""
