"""One process that serves agents: where everything is put together."""
