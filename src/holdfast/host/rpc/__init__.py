"""What hosts tell and ask one another."""
