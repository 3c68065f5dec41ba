"""The caller's side: where a message goes, when it is tried again, and what its caller is told."""
