"""Which hosts' servers have a vote, and which server leads which cell."""
