"""Who owns which shard: the plan, claims, epochs, and the recovery of what was claimed."""
