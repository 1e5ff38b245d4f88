"""Profiles of hypothesis: few examples, the same in every run; `--hypothesis-profile=thorough` tries many new ones."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # its caches stay out of the checkout
settings.register_profile("quick", max_examples=30, derandomize=True, database=None, deadline=None)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=1000, derandomize=False)
settings.load_profile("quick")
