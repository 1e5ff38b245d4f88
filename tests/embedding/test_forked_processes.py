"""`encode` in a forked process after one in its parent, and memory that does not grow between rows."""

import os
import sys

import pytest
from processes import launch

FORK = """
import os, sys, time
import numpy as np, torch
from small_models import make_model, noise
torch.set_num_threads(2)
model = make_model()
clips = [noise(20_000, seed=seed) for seed in range(8)]
expected = model.encode(clips, 16_000)
child = os.fork()
if child == 0:
    close = np.abs(model.encode(clips, 16_000) - expected).max() < 1e-5 * np.abs(expected).max()
    os._exit(0 if close else 3)
for _ in range(1200):  # two minutes
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    os.waitpid(child, 0)
    sys.exit("the child hangs")
print("exit status", os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS frameworks do not survive a fork")
def test_a_forked_process_encodes_after_its_parent(tmp_path):
    script = tmp_path / "fork.py"
    script.write_text(FORK)
    assert "exit status 0" in launch([script], tmp_path, OMP_NUM_THREADS="2")
