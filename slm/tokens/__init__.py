"""Encode: parquet files → token shards and their tokenizer; shards → batches."""
