"""What the log says of the cluster: its manifest, placement, cohort, registry and events."""
