"""What holds for all tests: no request leaves the machine; profiles of hypothesis.

Its examples are few and the same in every run; `--hypothesis-profile=thorough` tries many new ones.
"""

import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: its answers depend on the machine's network

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # its caches stay out of the checkout
settings.register_profile("quick", max_examples=30, derandomize=True, database=None, deadline=None)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=1000, derandomize=False)
settings.load_profile("quick")
