"""Adapters to other people's evaluations: `mtslvr_hf.harnesses.hear` and `mtslvr_hf.harnesses.mteb`."""
