"""An agent in memory: which message is next, its turn, and what may be wrong with either."""
