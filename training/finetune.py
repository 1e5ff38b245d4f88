"""Fine-tuning of a pre-trained model, `mtslvr finetune`, as a script for `accelerate launch`."""

from mtslvr_hf.finetune import main
from mtslvr_hf.runs.command import run_command

if __name__ == "__main__":
    run_command(main)
