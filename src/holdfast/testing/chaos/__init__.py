"""Chaos: a real cluster whose network, processes and disks are harmed while it works."""
