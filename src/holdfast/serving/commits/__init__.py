"""From finished turns to one batch in the log, and what becomes of it."""
