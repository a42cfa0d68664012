"""Benchmarks: tasks with right answers, and how a model scores them."""
