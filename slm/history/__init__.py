"""History: which runs there are, what they were made of, how they compare."""
