"""The parts of `scripts/benchmark.py`: one file for each thing measured, and what they share."""
