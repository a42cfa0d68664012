"""Byte-level BPE, at speed: GPT-2's, vocabularies trimmed from it, trained ones, given ones."""
