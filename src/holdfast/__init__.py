"""Durable Python agents on a cluster of identical machines."""
