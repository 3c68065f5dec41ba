"""The `holdfast` command: a face without logic of its own."""
