"""pipeline("audio-classification"): transformers' own from arrays, ours from files too."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from classifier_runs import HERTZ, RATE, TINY, tone
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRForAudioClassification
from mtslvr_hf.classification import MTSLVRAudioClassificationPipeline
from mtslvr_hf.data import BadClipError

NAMES = [*HERTZ, "siren", "speech", "wind"]


def save_classifier(folder, **changes):
    torch.manual_seed(0)
    config = MTSLVRConfig(
        **TINY, id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)}, **changes
    )
    model = MTSLVRForAudioClassification(config)
    with torch.no_grad():
        size = model.eval().mtslvr(torch.from_numpy(tone(200, 0))[None]).pooler_output.norm()
        model.classifier.weight.normal_().div_(size)  # scores that tell clips apart, and are neither 0 nor 1
    model.save_pretrained(folder)
    MTSLVRFeatureExtractor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module", params=["transformers'", "ours"])
def classify(request, folder):
    chosen = {} if request.param == "transformers'" else {"pipeline_class": MTSLVRAudioClassificationPipeline}
    return pipeline("audio-classification", model=folder, device="cpu", **chosen)


@pytest.fixture(scope="module")
def ours(folder):
    return pipeline("audio-classification", folder, device="cpu", pipeline_class=MTSLVRAudioClassificationPipeline)


def scores_of(folder, waveform, rate=RATE):
    """Scores of model and extractor without a pipeline: (name, score), the best first."""
    inputs = AutoFeatureExtractor.from_pretrained(folder)(waveform, sampling_rate=rate, return_tensors="pt")
    model = AutoModelForAudioClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        scores = model(**inputs).logits[0].softmax(-1).tolist()
    return sorted(zip(NAMES, scores), key=lambda pair: -pair[1])


def check(found, expected, tolerance=1e-5):
    assert [entry["label"] for entry in found] == [name for name, _ in expected[: len(found)]]
    assert [e["score"] for e in found] == pytest.approx([score for _, score in expected[: len(found)]], abs=tolerance)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.7])
def test_arrays_get_the_models_scores(classify, folder, seconds):
    waveform = tone(900, 1, seconds)
    check(classify(waveform), scores_of(folder, waveform))
    check(classify(torch.from_numpy(waveform), top_k=2), scores_of(folder, waveform))


@pytest.mark.parametrize("key", ["array", "raw"])
def test_dictionaries_bring_their_rate(classify, folder, key):
    waveform = tone(900, 1, 2.0)
    found = classify({key: waveform, "sampling_rate": 2 * RATE}, top_k=None)
    assert len(found) == len(NAMES)
    own = isinstance(classify, MTSLVRAudioClassificationPipeline)
    check(found, scores_of(folder, waveform, 2 * RATE), 1e-4 if own else 2e-2)  # transformers' resamples by torchaudio


def test_top_k_beyond_the_classes_is_all_of_them(classify):
    found = classify(tone(200, 0), top_k=99)
    assert {entry["label"] for entry in found} == set(NAMES)
    assert sum(entry["score"] for entry in found) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_channels_are_averaged(ours, folder, kind):
    stereo = np.stack([tone(900, 1), 0.5 * tone(900, 1)])
    for rate, tolerance in ((RATE, 1e-5), (2 * RATE, 1e-4)):
        expected = scores_of(folder, stereo.mean(0), rate)
        for key in ("array", "raw"):
            check(ours({key: kind(stereo), "sampling_rate": rate}, top_k=None), expected, tolerance)
    with pytest.raises(ValueError, match=r"one clip \(channels, samples\), or 2 clips \(batch, samples\)"):
        ours(kind(stereo))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lists_get_what_each_clip_gets(classify, folder, batch_size):
    waveforms = [tone(HERTZ["low"], 0, 0.4), tone(HERTZ["high"], 0, 2.2), tone(HERTZ["middle"], 0, 1.0)]
    for found, waveform in zip(classify(waveforms, batch_size=batch_size, top_k=3), waveforms):
        check(found, scores_of(folder, waveform))


def test_several_classes_a_clip_are_sigmoids(tmp_path):
    folder = save_classifier(tmp_path, problem_type="multi_label_classification")
    classify = pipeline("audio-classification", folder, device="cpu")
    found = classify(tone(200, 0), top_k=None, function_to_apply="sigmoid")  # which transformers 5.0 must be told
    inputs = MTSLVRFeatureExtractor()(tone(200, 0), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModelForAudioClassification.from_pretrained(folder).eval()(**inputs).logits[0].sigmoid()
    assert {e["label"]: e["score"] for e in found} == pytest.approx(dict(zip(NAMES, expected.tolist())), abs=1e-5)


WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["mtslvr_hf"] = None
import numpy as np
from transformers import pipeline
classify = pipeline("audio-classification", sys.argv[1], trust_remote_code=True, device="cpu")
clip = np.load(sys.argv[2])
stereo = np.stack([1.5 * clip, 0.5 * clip])
print(json.dumps([classify(x, top_k=3) for x in (clip, {"array": stereo, "sampling_rate": 16000}, sys.argv[3])]))
"""


def test_it_works_where_the_package_is_not_installed(folder, tmp_path):
    np.save(tmp_path / "clip.npy", tone(900, 1))
    soundfile.write(tmp_path / "clip.wav", tone(900, 1), RATE, subtype="FLOAT")
    clips = [str(tmp_path / "clip.npy"), str(tmp_path / "clip.wav")]
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, folder, *clips]
    options = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **options, "PATH": ""}  # without the ffmpeg program
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for found in json.loads(done.stdout):
        check(found, scores_of(folder, tone(900, 1)))


# Files


@pytest.mark.parametrize("suffix, rate, channels", [("wav", RATE, 1), ("flac", 44_100, 2), ("ogg", 48_000, 1)])
def test_files_need_no_ffmpeg(ours, folder, tmp_path, monkeypatch, suffix, rate, channels):
    monkeypatch.setenv("PATH", "")  # where the ffmpeg program would be
    path = tmp_path / f"clip.{suffix}"
    time = np.arange(round(1.5 * rate)) / rate
    soundfile.write(path, np.stack([0.3 * np.sin(2 * np.pi * 500 * time)] * channels, 1), rate)
    waveform = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(1)
    expected = scores_of(folder, waveform, rate)
    for source in (str(path), path, path.read_bytes(), {"bytes": path.read_bytes(), "path": None}):
        check(ours(source, top_k=3), expected, 1e-4)
    row = {"bytes": None, "path": str(path), "sampling_rate": None}
    check(ours([row, str(path)], top_k=1)[0], expected, 1e-4)


def test_files_without_ffmpeg_are_refused_by_transformers_own(folder, tmp_path, monkeypatch):
    """Once it no longer is, the pipeline of ours may go."""
    monkeypatch.setenv("PATH", "")
    soundfile.write(tmp_path / "clip.wav", tone(200, 0), RATE)
    with pytest.raises(ValueError, match="ffmpeg was not found"):
        pipeline("audio-classification", folder, device="cpu")(str(tmp_path / "clip.wav"))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
def test_files_with_ffmpeg(folder, tmp_path):
    waveform = tone(200, 0)
    soundfile.write(tmp_path / "clip.wav", waveform, RATE, subtype="FLOAT")
    check(
        pipeline("audio-classification", folder, device="cpu")(str(tmp_path / "clip.wav")), scores_of(folder, waveform)
    )


def test_bad_files_are_named(ours, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    for path in (tmp_path / "text.wav", tmp_path / "absent.wav", tmp_path):
        with pytest.raises(BadClipError, match=path.name):
            ours(str(path))
