"""Who is there, who owns what, and what is registered."""
