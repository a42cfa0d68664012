"""Token shards on disk: the layout of llm.c, read, written and inspected."""
