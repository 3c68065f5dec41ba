"""The owner's side: from a message that comes in to a committed turn and its answer."""
