"""What is wrong with a cluster or an embedded log, why, and what to do about it."""
