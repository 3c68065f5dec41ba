"""What authors and callers write against: agents, their handlers and contexts, and their
addresses."""
