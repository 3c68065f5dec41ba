"""The hosts and nodes of a cluster: who they are, how many keep copies, and how they are
upgraded."""
