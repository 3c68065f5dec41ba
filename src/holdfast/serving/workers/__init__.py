"""Handlers in threads and worker processes."""
