"""What implements the log, the bus and the blobs."""
