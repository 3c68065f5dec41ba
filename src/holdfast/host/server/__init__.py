"""The nats-server of a host: its settings, its process, its store, and its administration."""
