"""The cost of NF4 on the user's rows: its measurement as a job, its result in words, the layers to keep in 16 bit."""
