"""Train: token shards → a run with checkpoints, in a child process."""
