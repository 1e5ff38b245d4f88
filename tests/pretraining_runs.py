"""Small data and small runs for the tests of pre-training."""

import io
import json
import math
from pathlib import Path

import datasets
import numpy as np
import soundfile
import torch

from mtslvr_hf import MTSLVRConfig, MTSLVRForPreTraining
from mtslvr_hf.data import AudioStream
from mtslvr_hf.trainer import MTSLVRTrainer, MTSLVRTrainingArguments

ROOT = Path(__file__).parent.parent
RATE = 16000
SECONDS = 0.5
TINY = {"base_width": 8, "window_seconds": SECONDS, "embedding_size": 32}


def tone(number, seconds=0.7):
    """A decaying chord in noise, another for each number: (samples,)."""
    generator = np.random.default_rng(number)
    time = np.arange(round(seconds * RATE)) / RATE
    waveform = sum(np.sin(2 * math.pi * f * time) for f in generator.uniform(80, 3000, 3)) * np.exp(-3 * time)
    return (0.2 * waveform + 0.01 * generator.standard_normal(len(time))).astype(np.float32)


def wav_bytes(waveform):
    file = io.BytesIO()
    soundfile.write(file, waveform, RATE, format="WAV")
    return file.getvalue()


def make_rows(good=24, bad=0):
    """A data set of WAV files, the bad ones no audio at all, spread among the good."""
    files = [wav_bytes(tone(number)) for number in range(good)]
    for number in range(bad):
        files.insert((number + 1) * len(files) // (bad + 1), b"no audio %d" % number)
    audio = [{"bytes": file, "path": f"{number}.wav"} for number, file in enumerate(files)]
    return datasets.Dataset.from_dict({"audio": audio}).cast_column("audio", datasets.Audio(decode=False))


def make_stream(rows=None, batch_size=4, **options):
    rows = make_rows() if rows is None else rows
    return AudioStream(rows, SECONDS, RATE, batch_size=batch_size, shuffle_buffer=8, **options)


def make_clips(count=8):
    """Evaluation clips that the stream does not have: (count, samples)."""
    return torch.stack([torch.from_numpy(tone(1000 + number, SECONDS)) for number in range(count)])


def make_model(**changes):
    torch.manual_seed(0)
    return MTSLVRForPreTraining(MTSLVRConfig(**{**TINY, **changes}))


def make_args(folder, **changes):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "eval_steps": 2,
        "dataloader_num_workers": 0,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return MTSLVRTrainingArguments(**{**defaults, **changes})


def make_trainer(folder, rows=None, model=None, stream=None, probes=(), **changes):
    args = make_args(folder, **changes)
    clips = None if args.eval_strategy == "no" else make_clips()
    stream = make_stream(rows, args.per_device_train_batch_size) if stream is None else stream
    return MTSLVRTrainer(make_model() if model is None else model, args, stream, clips, probes=probes)


def logged(source, name):
    """Every value of a measure that was logged, by step; of a Trainer, or of a folder with its state."""
    if isinstance(source, MTSLVRTrainer):
        history = source.state.log_history
    else:
        history = json.loads((Path(source) / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[name] for entry in history if name in entry}
