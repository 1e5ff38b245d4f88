"""`pipeline("feature-extraction")` gives embeddings of audio, by the code that travels with a model."""

import numpy as np
import pytest
import soundfile
import torch
from small_models import RATE, SIZE, assert_close, make_model, noise
from transformers import pipeline

from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRForAudioClassification, MTSLVRForPreTraining
from mtslvr_hf.pipeline_mtslvr import MTSLVRFeatureExtractionPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model(model_class=MTSLVRForPreTraining, frontend="mel").save_pretrained(folder)
    MTSLVRFeatureExtractor(normalization="sample").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(folder):
    return MTSLVRForPreTraining.from_pretrained(folder)


@pytest.fixture(scope="module", params=["trust_remote_code", "pipeline_class"])
def embed(request, folder):
    options = {"trust_remote_code": True, "pipeline_class": MTSLVRFeatureExtractionPipeline}
    return pipeline("feature-extraction", folder, device="cpu", **{request.param: options[request.param]})


def test_every_kind_of_clip(embed, model, tmp_path):
    stereo = noise(30_000, channels=2)
    path = tmp_path / "sound.wav"
    soundfile.write(path, stereo.T, 44_100, subtype="FLOAT")
    expected = model.encode(path)
    for clip in (str(path), path, path.read_bytes(), {"bytes": None, "path": str(path)}):
        assert_close(np.float32(embed(clip)), expected)
    of_file = {"bytes": None, "path": str(path)}
    for row in ({"label": 1, "audio": of_file}, {"sound": of_file, "label": "a"}):
        assert_close(np.float32(embed(row)), expected)
    with pytest.raises(ValueError, match="The row has several columns with audio among left, right; expected"):
        embed({"left": of_file, "right": of_file})
    with pytest.raises(ValueError, match="The row has no audio among label; expected audio in a column `audio`"):
        embed({"label": 1})
    for key in ("array", "raw"):
        assert_close(np.float32(embed({key: stereo, "sampling_rate": 44_100})), expected)
    for clip in (noise(20_000), torch.from_numpy(noise(20_000))):
        assert_close(np.float32(embed(clip)), model.encode(noise(20_000), RATE))
    with pytest.raises(ValueError, match=r"one clip \(channels, samples\), or 2 clips \(batch, samples\)"):
        embed(stereo)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lists_tasks_and_tensors(embed, model, batch_size):
    clips = [noise(samples, seed=samples) for samples in (16_000, 300, 40_000)]
    assert_close(np.float32(embed(clips, batch_size=batch_size)), model.encode(clips, RATE))
    found = embed(clips, batch_size=batch_size, tasks="predictive", return_tensors=True)
    assert [embedding.shape for embedding in found] == [(SIZE // 2,)] * 3
    assert_close(torch.stack(found).numpy(), model.encode(clips, RATE, tasks="predictive"))
    with pytest.raises(TypeError, match="task"):
        embed(clips[0], task_names="predictive")


def test_code_of_a_folder_runs_only_with_trust(folder):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline("feature-extraction", folder, device="cpu")


def test_a_classifier_needs_no_trust_with_the_package(tmp_path):
    make_model(model_class=MTSLVRForAudioClassification).save_pretrained(tmp_path)
    assert MTSLVRConfig.from_pretrained(tmp_path).custom_pipelines == {}
