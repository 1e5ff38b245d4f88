"""Fine-tuning of a pre-trained model, `mtslvr finetune`, as a script for `accelerate launch`."""

from mtslvr_hf.finetune import main

if __name__ == "__main__":
    main()
