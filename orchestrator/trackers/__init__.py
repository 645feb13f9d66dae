"""Experiment trackers: TensorBoard and Weights & Biases, each in a process of its own."""
