"""Plan: what a run would reuse, resume and make, and why, before anything is done.

The keys are made by the very functions that the stages make them with, so that a plan and the run
after it agree. Nothing is written, no server is asked, and PyTorch is not imported.
"""
