"""Checkpoints as intervals of flattened tensors: format, verification, catalogue. numpy and JSON only."""
