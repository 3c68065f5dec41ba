"""What lies in the log and travels between processes: messages, agents' records, and packs of
them."""
