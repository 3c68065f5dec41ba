"""A shard that is owned: its agents, their inboxes, and sends on their way to other cells."""
