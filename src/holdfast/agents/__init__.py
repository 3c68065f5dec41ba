"""Agents: from a message to a committed turn."""
