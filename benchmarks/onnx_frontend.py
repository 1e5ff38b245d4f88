"""Accuracy and speed of the exported front end in ONNX Runtime: operators of torch and of the package.

python benchmarks/onnx_frontend.py                                    # needs pip install -e '.[onnx]'
python benchmarks/onnx_frontend.py --music FOLDER --speech FOLDER     # any audio files
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import onnxscript
import soundfile
import torch
from as_published import machine, seconds_each
from scipy.signal import lfilter
from torch import nn

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel
from mtslvr_hf.export.graphs import DECOMPOSITIONS, ModelGraph, SpectrogramGraph, WaveformGraph
from mtslvr_hf.export.onnx import compare, to_onnx

SECONDS, RATE = 10, 16_000
SAMPLES = SECONDS * RATE
CLIPS = 8
BATCHES, THREADS = (1, CLIPS), (1, 2)
ATEN = torch.ops.aten
DFT = "DFT (torch)"
OURS = "matrix products (the package)"
NORMALIZED = MTSLVRFeatureExtractor(normalization="none")  # the batches are normalized


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    demo = Path(__file__).parents[1] / "demo" / "audio"
    parser.add_argument("--music", type=Path, default=demo, help="folder of music (default: demo/audio)")
    parser.add_argument("--speech", type=Path, help="folder of speech (default: synthetic syllables)")
    parser.add_argument("--base-width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    inputs = make_inputs(options)
    model = make_model(options.base_width, inputs["music"])
    versions = f"onnxruntime {onnxruntime.__version__}, onnxscript {onnxscript.__version__}"
    print(f"{SECONDS} s clips, width {options.base_width}, `mel_stft`; {machine()}, {versions}\n")
    with tempfile.TemporaryDirectory() as folder:
        files = {name: export_both(model, table, Path(folder)) for name, table in transforms().items()}
        report_accuracy(files, model, inputs)
        report_speed(files, options.rounds)
        report_others(Path(folder) / "model.onnx")


def transforms() -> dict[str, dict[Any, Callable]]:
    """Decompositions for exports of the STFT; all have the package's atan2, hypot and pooling, which are needed."""
    return {
        "STFT (torch)": without(ATEN.stft.default),
        DFT: {**DECOMPOSITIONS, ATEN.stft.default: stft_by_dft},
        OURS: dict(DECOMPOSITIONS),
    }


def stft_by_dft(
    waveforms: torch.Tensor, n_fft: int, hop_length: int, win_length: int, window: torch.Tensor, *_: Any
) -> torch.Tensor:
    """STFT by torch's DFT operator; frames minus their first sample, so that constant frames are exactly 0."""
    starts = torch.arange(0, waveforms.shape[1] - n_fft + 1, hop_length)
    frames = waveforms[:, starts[:, None] + torch.arange(n_fft)] * window  # (batch, frames, n_fft)
    offset = frames[..., :1]
    spectrum = torch.fft.rfft(frames - offset)
    real = torch.cat([spectrum.real[..., :1] + n_fft * offset, spectrum.real[..., 1:]], dim=-1)
    return torch.complex(real, spectrum.imag).transpose(1, 2)


class FrontendGraph(ModelGraph):
    """Front end alone."""

    dynamic_axes = {"waveforms": {0: "batch", 1: "samples"}}

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.network.frontend(waveforms).contiguous()


class ForwardGraph(WaveformGraph):
    """Forward of the model, with its own windows."""

    def forward(self, waveforms: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.network(waveforms, attention_mask, tasks=self.tasks).pooler_output


def make_inputs(options: argparse.Namespace) -> dict[str, dict[str, torch.Tensor]]:
    """Batches of prepared clips by kind."""
    music = from_folder(options.music)
    speech = synthetic_speech() if options.speech is None else from_folder(options.speech)
    lengths = np.linspace(RATE // 2, SAMPLES, CLIPS).astype(int)
    kinds = {
        "music": list(music),
        "speech": list(speech),
        "digital silence": list(np.zeros_like(music)),
        "music and silence in turns": list(music * (np.arange(SAMPLES) // RATE % 2)),
        "music, 0.5 to 10 s": [clip[:length] for clip, length in zip(music, lengths)],
    }
    extractor = MTSLVRFeatureExtractor()
    return {kind: dict(extractor(clips, RATE, return_tensors="pt")) for kind, clips in kinds.items()}


def from_folder(folder: Path) -> np.ndarray:
    """Audio of a folder's files in a row, as (clips, samples) float32."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".flac", ".wav", ".ogg", ".mp3"))
    if not paths:
        raise SystemExit(f"{folder} holds no .flac, .wav, .ogg or .mp3: name a folder of audio.")
    pieces: list[np.ndarray] = []
    for index in np.random.default_rng(0).permutation(len(paths)):
        samples, rate = soundfile.read(paths[index], dtype="float32", always_2d=True)
        extractor = MTSLVRFeatureExtractor(normalization="none")
        pieces.append(extractor(samples.T, rate, return_tensors="np", channels_first=True)["input_values"][0])
        if sum(map(len, pieces)) >= CLIPS * SAMPLES:
            break
    return np.resize(np.concatenate(pieces), (CLIPS, SAMPLES)).astype(np.float32)


def synthetic_speech() -> np.ndarray:
    """Glottal pulses of gliding pitch through formants, in syllables with noise and pauses, as (clips, samples)."""
    generator, seconds = np.random.default_rng(0), np.arange(SAMPLES) / RATE
    clips = []
    for _ in range(CLIPS):
        pitch = generator.uniform(90, 220) * (1 + 0.2 * np.sin(2 * np.pi * generator.uniform(0.3, 1) * seconds))
        voice = np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0)  # an impulse each period
        noise = 0.02 * generator.standard_normal(SAMPLES) * (np.sin(2 * np.pi * 3 * seconds) < -0.8)
        for formant in generator.uniform((300, 900, 2200), (800, 2000, 3000)):
            pole = np.exp(-np.pi * 80 / RATE)
            voice = lfilter([1 - pole], [1, -2 * pole * np.cos(2 * np.pi * formant / RATE), pole**2], voice)
        clip = voice / np.abs(voice).max() * np.clip(np.sin(2 * np.pi * 2 * seconds), 0, 1) + noise
        clips.append(0.5 * clip)
    return np.stack(clips).astype(np.float32)


def make_model(base_width: int, inputs: dict[str, torch.Tensor]) -> MTSLVRModel:
    """Network whose batch normalization has the statistics of these clips."""
    model = MTSLVRModel(MTSLVRConfig(base_width=base_width)).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model(**inputs)
    return model.eval().requires_grad_(False)


def export_both(model: MTSLVRModel, table: dict[Any, Callable], folder: Path) -> dict[str, bytes]:
    """ONNX files of the front end and of the whole network."""
    network, tasks = model.inference_network(), model.config.embedding_tasks
    example = {"waveforms": torch.randn(3, SAMPLES // 2)}
    whole = WaveformGraph(network, tasks, NORMALIZED, with_mask=True)
    return {
        "front end": export(FrontendGraph(network, tasks, NORMALIZED), example, table, folder),
        "whole network": export(whole, whole.batches()[-1], table, folder),
    }


def export(graph: ModelGraph, example: dict[str, torch.Tensor], table: dict[Any, Callable], folder: Path) -> bytes:
    with patch.dict(DECOMPOSITIONS, table, clear=True):
        program = to_onnx(graph.eval(), example)
    program.save(folder / "model.onnx", external_data=False)
    return (folder / "model.onnx").read_bytes()


def session(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # otherwise sessions slow each other
    return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def report_accuracy(
    files: dict[str, dict[str, bytes]], model: MTSLVRModel, inputs: dict[str, dict[str, torch.Tensor]]
) -> None:
    print("Differences from torch: log-mel in dB, embeddings as they are and relative to a clip's Euclidean norm.\n")
    print("| transform | input | log-mel: max | mean | embeddings: max | mean | relative: max |")
    print("| --- " * 7 + "|")
    for name, contents in files.items():
        sessions = {part: session(content, 1) for part, content in contents.items()}
        for kind, batch in inputs.items():
            values = batch["input_values"]
            named = {"waveforms": values.numpy(), "attention_mask": batch["attention_mask"].numpy()}
            (features,) = sessions["front end"].run(None, {"waveforms": values.numpy()})
            log_mel = (torch.from_numpy(features) - model.frontend(values))[:, 0].abs()
            (found,) = sessions["whole network"].run(None, named)
            expected = model(**batch).pooler_output
            difference = torch.from_numpy(found) - expected
            relative = (difference.norm(dim=1) / expected.norm(dim=1)).max()
            figures = (log_mel.max(), log_mel.mean(), difference.abs().max(), difference.abs().mean(), relative)
            print(f"| {name} | {kind} |", *(f"{float(figure):.1e} |" for figure in figures))


def report_speed(files: dict[str, dict[str, bytes]], rounds: int) -> None:
    print("\nMilliseconds of a batch, in ONNX Runtime; median of", rounds, "rounds in turns. (x the package's)\n")
    print("| part | threads | clips |", *(f"{name} |" for name in files))
    print("| --- " * (3 + len(files)) + "|")
    for part in ("front end", "whole network"):
        for threads in THREADS:
            sessions = {name: session(contents[part], threads) for name, contents in files.items()}
            for clips in BATCHES:
                noise = np.random.default_rng(0).standard_normal((clips, SAMPLES)).astype(np.float32)
                batch = {"waveforms": noise, "attention_mask": np.ones(noise.shape, dtype=np.int64)}
                if part == "front end":
                    del batch["attention_mask"]
                functions = {name: (lambda s=s, b=batch: s.run(None, b)) for name, s in sessions.items()}
                seconds = seconds_each(functions, rounds)
                figures = (f"{1e3 * value:.1f} ({value / seconds[OURS]:.2f} x)" for value in seconds.values())
                print(f"| {part} | {threads} | {clips} |", *(f"{figure} |" for figure in figures))


def report_others(path: Path) -> None:
    """Prints results of exports without one of the other decompositions, on a narrow network."""
    cases = {
        "`hypot`": (WaveformGraph, without(ATEN.hypot.default), 1024),
        "`atan2`": (WaveformGraph, without(ATEN.atan2.default), 1024),
        "adaptive pooling, any number of frames": (SpectrogramGraph, without(ATEN.adaptive_avg_pool2d.default), 1024),
        "windows as the model's forward cuts them": (ForwardGraph, dict(DECOMPOSITIONS), 1024),
        "DFT of 768 samples": (WaveformGraph, transforms()[DFT], 768),
        "nothing, 768 samples": (WaveformGraph, dict(DECOMPOSITIONS), 768),
    }
    print("\n| left to torch | outcome |\n| --- | --- |")
    for name, (graph, table, n_fft) in cases.items():
        torch.manual_seed(0)
        model = MTSLVRModel(MTSLVRConfig(base_width=4, n_fft=n_fft)).eval().requires_grad_(False)
        network = copy.deepcopy(model.inference_network())
        options = {} if graph is SpectrogramGraph else {"with_mask": True}
        built = graph(network, model.config.embedding_tasks, MTSLVRFeatureExtractor(), **options)
        batches = built.batches()
        try:
            export(built, batches[-1], table, path.parent)
            outcome = f"largest relative error {max(compare(path, model, batches)):.1e}"
        except Exception as error:  # torch, onnxscript and onnxruntime have different classes
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            outcome = f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}"
        print(f"| {name} | {outcome} |")


def without(operator: Any) -> dict[Any, Callable]:
    """Decompositions of the package without one operator."""
    return {name: function for name, function in DECOMPOSITIONS.items() if name is not operator}


if __name__ == "__main__":
    main()
