"""Reproduction: a run rebuilt from its lineage and compared with the recorded one."""
