"""Benchmarks: `python -m bench`. Each figure stands beside what the engine alone does with the same
shape of batch."""
