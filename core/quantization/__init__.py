"""What four bits cost on the user's own rows: the measurement as a job, its result in words, what to keep in 16 bit."""
