"""The supervisor of one machine: its nats-server and its nodes."""
