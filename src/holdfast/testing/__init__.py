"""Finding out whether a cluster keeps its promises: simulations, chaos, and the checkers of
both."""
