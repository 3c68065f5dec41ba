"""The same small work on what people would use instead: one command, one table."""
