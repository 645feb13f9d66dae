"""Drills: run a job twice, once undisturbed and once with real faults, and compare."""
