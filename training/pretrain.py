"""Pre-training on streamed audio, `mtslvr pretrain`, as a script for `accelerate launch`."""

from mtslvr_hf.pretrain import main

if __name__ == "__main__":
    main()
