"""Who is there: beats, proofs of life, and who is suspected or stands still."""
