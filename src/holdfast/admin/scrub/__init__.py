"""Comparing the copies of everything that a cluster keeps, and mending one that differs."""
