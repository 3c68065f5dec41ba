"""All rows, with the shape of the batches read from the run itself: `python -m bench.suite`."""
