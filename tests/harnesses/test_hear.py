"""The HEAR API: what its specification and its validator ask for, and what the embeddings mean."""

import pytest
import torch
from small_models import assert_close
from transformers import AutoFeatureExtractor, AutoModel

from mtslvr_hf.harnesses import hear


@pytest.fixture(scope="module")
def model(folder):
    return hear.load_model(str(folder))


def noise(sounds, seconds, seed=0):
    return torch.rand(sounds, int(seconds * 16_000), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_model_has_the_attributes(model):
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in (16000, 22050, 32000, 44100, 48000)
    assert type(model.scene_embedding_size) is int and type(model.timestamp_embedding_size) is int
    assert model.to("cpu") is model


def test_scene_embeddings(model):
    audio = noise(4, 2.74)
    embeddings = hear.get_scene_embeddings(audio, model)
    assert embeddings.shape == (4, model.scene_embedding_size) == (4, 8)
    assert embeddings.dtype == torch.float32 and not embeddings.is_inference()
    inputs = model.feature_extractor(list(audio), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = model.model(**inputs).pooler_output
    assert_close(embeddings, expected)
    assert torch.equal(model(audio), embeddings)


def test_embeddings_before_the_heads(folder, tmp_path):
    AutoModel.from_pretrained(folder, pooling="bands").save_pretrained(tmp_path)
    AutoFeatureExtractor.from_pretrained(folder).save_pretrained(tmp_path)
    model, audio = hear.load_model(str(tmp_path)), noise(2, 1.0)
    assert model.scene_embedding_size == 256
    assert hear.get_scene_embeddings(audio, model).shape == (2, 256)
    assert hear.get_timestamp_embeddings(audio, model)[0].shape == (2, 21, 256)


@pytest.mark.parametrize("seconds", (1.07, 1.98, 4.0))  # the validator's
def test_timestamps_as_the_validator_wants_them(model, seconds):
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(2, seconds), model)
    assert embeddings.shape == (2, timestamps.shape[1], model.timestamp_embedding_size)
    assert embeddings.dtype == timestamps.dtype == torch.float32 and not embeddings.is_inference()
    assert torch.equal(timestamps[0], timestamps[1])
    steps = timestamps[0].diff()
    assert steps.max() <= 50 and (steps - steps.mean()).abs().max() < 1
    assert timestamps[0, 0] == 0 and 1000 * seconds - 50 <= timestamps[0, -1] <= 1000 * seconds


def test_timestamps_do_not_drift(folder):
    model = hear.load_model(str(folder), hop_milliseconds=33.3)  # no whole number of samples
    timestamps = hear._timestamps(20 * 60 * 16_000, model)
    positions = hear._window_positions(timestamps, 20 * 60 * 16_000, model)
    number = len(timestamps) - 40
    assert timestamps[number] == pytest.approx(33.3 * number)
    assert int(positions[number, 0]) == round(33.3 * number * 16) - 8000


def test_timestamp_embedding_is_that_of_the_second_around_it(model):
    audio = noise(2, 3.0)
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    number = 31
    assert timestamps[1, number] == 1550
    normalized = torch.stack([(row - row.mean()) / row.std(correction=0) for row in audio])
    for place, window in ((number, normalized[1, 24_800 - 8000 : 24_800 + 8000]), (0, normalized[1, :8000].repeat(2))):
        with torch.no_grad():
            expected = model.model(window[None]).pooler_output[0]
        assert_close(embeddings[1, place], expected)


def test_an_event_shows_when_it_happens(model):
    quiet, loud = 0.01 * noise(1, 4.0), noise(1, 4.0)
    audio = torch.where((torch.arange(quiet.shape[1]) // 16_000 == 2)[None], loud, quiet)  # from 2 to 3 seconds
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    change = (embeddings[0] - embeddings[0, 0]).norm(dim=1)
    assert 2000 <= timestamps[0, change.argmax()] <= 3000
    assert change[timestamps[0] < 1450].max() < 0.2 * change.max()


def test_a_sound_does_not_depend_on_the_batch(folder, model):
    audio = noise(3, 1.3)
    one_by_one = hear.load_model(str(folder))
    one_by_one.batch_size = 7
    for embed in (hear.get_scene_embeddings, lambda *args: hear.get_timestamp_embeddings(*args)[0]):
        together = embed(audio, model)
        assert_close(embed(audio[1:2], one_by_one)[0], together[1])


def test_very_short_sound(model):
    for samples in (1, 80):
        audio = noise(1, 1)[:, :samples]
        embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
        assert timestamps.tolist() == [[0.0]] and torch.isfinite(embeddings).all()
        assert torch.isfinite(hear.get_scene_embeddings(audio, model)).all()


def test_chosen_tasks(folder):
    model = hear.load_model(str(folder), tasks="predictive", hop_milliseconds=500, context_seconds=0.5)
    assert model.scene_embedding_size == model.timestamp_embedding_size == 4
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(1, 1.2), model)
    assert embeddings.shape == (1, 3, 4) and timestamps.tolist() == [[0.0, 500.0, 1000.0]]


def test_wrong_input(model, folder):
    for audio, message in (
        (torch.zeros(16_000), "got torch.float32, shape"),
        (torch.zeros(2, 0), "not empty"),
        (torch.zeros(2, 900, dtype=torch.int16), "got torch.int16"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), "Sound 1 has samples that are NaN"),
    ):
        for embed in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
            with pytest.raises(ValueError, match=message):
                embed(audio, model)
    with pytest.raises(ValueError, match="no default model"):
        hear.load_model()
    for options in ({"hop_milliseconds": 0}, {"context_seconds": 0.03}, {"tasks": ["speaker"]}):
        with pytest.raises(ValueError, match="must"):
            hear.load_model(str(folder), **options)


@pytest.mark.gpu
def test_on_a_gpu(folder, model):
    """Within what a flipped phase makes, as in tests/test_invariance.py."""
    audio = noise(2, 1.5)
    on_gpu = hear.load_model(str(folder)).to("cuda")
    for embed in (hear.get_scene_embeddings, lambda *args: hear.get_timestamp_embeddings(*args)[0]):
        found, expected = embed(audio.cuda(), on_gpu), embed(audio, model)
        assert found.device.type == "cuda"
        assert (found.cpu() - expected).norm() <= 5e-2 * expected.norm()
