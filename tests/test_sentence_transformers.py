"""`SentenceTransformer(FOLDER)` gives the embeddings of `model.encode`, with the package and without it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from interrupted_runs import environment
from small_models import RATE, SIZE, assert_close, make_model, noise

from mtslvr_hf import MTSLVRFeatureExtractor, MTSLVRForAudioClassification, MTSLVRForPreTraining, MTSLVRModel

SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
normalize = pytest.importorskip("sentence_transformers.base.modules.normalize")


def save(folder, model_class=MTSLVRModel, **changes):
    # On log-mel input: a phase can jump from -pi to pi when a sample changes by its last bit.
    model = make_model(model_class=model_class, frontend="mel", **changes)
    model.save_pretrained(folder)
    MTSLVRFeatureExtractor(normalization="sample").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def transformer(folder):
    return SentenceTransformer(folder, device="cpu")


@pytest.fixture(scope="module")
def model(folder):
    return MTSLVRModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A mono and a stereo file, the second at another rate."""
    folder = tmp_path_factory.mktemp("sounds")
    soundfile.write(folder / "mono.wav", noise(20_000), RATE, subtype="FLOAT")
    soundfile.write(folder / "stereo.flac", noise(60_000, channels=2, seed=1).T, 44_100)
    return [str(folder / "mono.wav"), str(folder / "stereo.flac")]


def check(transformer, model, items, **options):
    """Each item alone and all together."""
    expected = np.stack([model.encode(item, **options) for item in items])
    assert_close(transformer.encode(items), expected)
    for item, embedding in zip(items, expected):
        assert_close(transformer.encode(item), embedding)


class TestEncode:
    def test_files(self, transformer, model, files):
        check(transformer, model, files)

    @pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda clip: clip.astype(np.float64)])
    def test_arrays_are_at_the_models_rate(self, transformer, model, kind):
        clips = [kind(noise(samples, seed=samples)) for samples in (16_000, 30_000, 500)]
        check(transformer, model, clips, sampling_rate=RATE)

    @pytest.mark.parametrize("rate", [8_000, RATE, 44_100])
    def test_dictionaries_have_their_rate_and_may_be_stereo(self, transformer, model, rate):
        clips = [noise(2 * rate), noise(rate, channels=2), torch.from_numpy(noise(rate // 3, channels=5))]
        check(transformer, model, [{"array": clip, "sampling_rate": rate} for clip in clips])

    def test_an_array_of_two_axes_is_one_clip_of_several_channels(self, transformer, model):
        """As sentence-transformers documents it: there, only a list is several items."""
        clip = noise(20_000, channels=2)
        assert_close(transformer.encode(clip), model.encode(clip, RATE, channels_first=True))

    def test_wrong_items_are_errors(self, transformer, tmp_path):
        (tmp_path / "text.wav").write_text("no audio")
        with pytest.raises(ValueError, match=r"Clip 0 \(.*text.wav\).* no audio"):
            transformer.encode([str(tmp_path / "text.wav")])
        with pytest.raises(ValueError, match="audio"):
            transformer.encode("a dog barks")
        with pytest.raises(ValueError, match="NaN or infinite"):
            transformer.encode(np.full(9, np.nan))

    def test_tensors_and_similarity(self, transformer, model, files):
        embeddings = transformer.encode(files, convert_to_tensor=True)
        torch.testing.assert_close(
            transformer.similarity(embeddings, embeddings), model.similarity(embeddings, embeddings)
        )
        assert transformer.similarity(embeddings[:1], embeddings).shape == (1, 2)


class TestModels:
    @pytest.mark.parametrize("model_class", [MTSLVRForPreTraining, MTSLVRForAudioClassification])
    def test_every_class_is_read_as_its_embedding(self, model_class, files, tmp_path):
        transformer = SentenceTransformer(save(tmp_path, model_class), device="cpu")
        check(transformer, model_class.from_pretrained(tmp_path), files)

    def test_the_dimension_is_that_of_the_active_tasks(self, files, tmp_path):
        model = make_model(frontend="mel")
        MTSLVRFeatureExtractor().save_pretrained(tmp_path)
        for tasks in (["contrastive", "predictive"], ["predictive"], ["birds", "contrastive", "predictive"]):
            if "birds" in tasks:
                model.add_adapter("birds")
            model.set_adapter(tasks)
            model.save_pretrained(tmp_path)
            transformer = SentenceTransformer(str(tmp_path), device="cpu")
            assert transformer.get_embedding_dimension() == SIZE // 2 * len(tasks)
            assert transformer.encode(files).shape == (2, SIZE // 2 * len(tasks))
        check(transformer, model, files)

    @pytest.mark.parametrize("changes", [{"pooling": "bands"}, {"use_heads": False, "pooling": "mean_max"}])
    def test_the_dimension_is_that_of_the_pooling(self, folder, files, changes):
        transformer = SentenceTransformer(folder, device="cpu", config_kwargs=changes)
        model = MTSLVRModel.from_pretrained(folder, **changes)
        assert transformer.get_embedding_dimension() == model.config.embedding_size_of() > SIZE
        assert transformer.get_sentence_embedding_dimension() == model.config.embedding_size_of()
        check(transformer, model, files)

    def test_what_it_saves_is_read_again_by_both(self, transformer, model, files, tmp_path):
        modules = [transformer[0], normalize.Normalize()]
        normalized = SentenceTransformer(modules=modules, prompts={"query": "sound"}, device="cpu")
        normalized.save_pretrained(str(tmp_path))
        model.save_pretrained(tmp_path)  # as in a training that goes on: the second module stays
        again = SentenceTransformer(str(tmp_path), device="cpu")
        assert again.prompts["query"] == "sound" and len(again) == 2
        assert_close(again.encode(files), model.encode(files, normalize=True))
        assert_close(MTSLVRModel.from_pretrained(tmp_path).encode(files), model.encode(files))

    def test_files_follow_the_rate(self, tmp_path):
        for rate in (8_000, RATE):
            make_model(sampling_rate=rate).save_pretrained(tmp_path)
            written = json.loads((tmp_path / "sentence_bert_config.json").read_text())
            assert written["processing_kwargs"]["audio"]["sampling_rate"] == rate


WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["mtslvr_hf"] = None
import numpy as np
from sentence_transformers import SentenceTransformer
folder, *files = sys.argv[1:]
transformer = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
assert type(transformer[0].model).__module__.startswith("transformers_modules.")
clip = {"array": np.load(files.pop()), "sampling_rate": 44_100}
print(json.dumps([transformer.encode(files).tolist(), transformer.encode(clip).tolist()]))
"""


def test_without_the_package(folder, model, files, tmp_path):
    clip = noise(50_000, channels=2, seed=3)
    np.save(tmp_path / "clip.npy", clip)
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, folder, *files, str(tmp_path / "clip.npy")]
    options = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env={**environment(), **options}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    of_files, of_clip = (np.array(rows, dtype=np.float32) for rows in json.loads(done.stdout.splitlines()[-1]))
    assert_close(of_files, model.encode(files))
    assert_close(of_clip, model.encode({"array": clip, "sampling_rate": 44_100}))
