"""Backups: taking one at one moment of the cluster, verifying it, and restoring it."""
