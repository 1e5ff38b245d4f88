"""Pre-training on streamed audio, `mtslvr pretrain`, as a script for `accelerate launch`."""

from mtslvr_hf.pretrain import main
from mtslvr_hf.runs.command import run_command

if __name__ == "__main__":
    run_command(main)
