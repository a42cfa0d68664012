"""A mixture: the shards of its sources joined, and read source by source."""
