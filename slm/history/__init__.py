"""History: which runs there are, what they were made from, how they compare."""
