"""Interfaces for external evaluations: `mtslvr_hf.harnesses.hear` and `mtslvr_hf.harnesses.mteb`."""
