"""Interfaces for external evaluations: `mtslvr_hf.harnesses.hear`, `.mteb` and `.xares`."""
