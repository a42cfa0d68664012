"""GPT-2's byte-level BPE, at speed, and vocabularies trimmed from it."""
