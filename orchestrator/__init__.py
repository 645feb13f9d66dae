"""Convoy: gang-scheduled, elastic DeepSpeed training on Ray."""

__version__ = "0.1.0"
