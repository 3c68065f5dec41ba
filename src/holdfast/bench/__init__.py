"""`holdfast bench`: what a cluster does in a second, and what that costs beside its engine
alone."""
