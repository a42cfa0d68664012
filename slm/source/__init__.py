"""Download: a dataset on the hub, local files or the embedded stories → parquet files."""
