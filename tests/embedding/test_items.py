"""Every kind of item has the same embedding, and one item is told from several."""

from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pytest
import soxr
import torch
from small_models import RATE, SIZE, assert_close, by_forward, make_model, noise, wav

from mtslvr_hf.data import EncodedAudio
from mtslvr_hf.embedding import encode, encode_items


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def stereo():
    return noise(30_000, channels=2, seed=5)


@pytest.fixture(scope="module")
def items(stereo, tmp_path_factory):
    """The same sound in every form."""
    data, mono = wav(stereo), stereo.mean(0)
    path = tmp_path_factory.mktemp("items") / "sound.wav"
    path.write_bytes(data)
    with fsspec.open("memory://folder/sound.wav", "wb") as file:
        file.write(data)
    decoded = SimpleNamespace(data=torch.from_numpy(stereo), sample_rate=RATE)
    return {
        "path": str(path),
        "Path": path,
        "URL": "memory://folder/sound.wav",
        "chained URL": f"simplecache::file://{path}",
        "bytes": data,
        "array": mono,
        "float64": mono.astype(np.float64),
        "every other sample": np.repeat(mono, 2)[::2],
        "tensor": torch.from_numpy(mono).requires_grad_(),
        "one channel in a list": mono[None],
        "list": mono.tolist(),
        "channels in a dictionary": {"array": stereo, "sampling_rate": RATE, "path": "gone.wav"},
        "channels by column": {"array": np.asfortranarray(stereo), "sampling_rate": RATE},
        "tensor in a dictionary": {"array": torch.from_numpy(stereo), "sampling_rate": RATE},
        "bytes in a dictionary": {"bytes": data, "path": None},
        "bytes with a name": {"bytes": data, "path": "gone.wav"},
        "path in a dictionary": {"bytes": None, "path": str(path)},
        "row": {"id": 3, "audio": {"bytes": data, "path": None}, "label": "a"},
        "row of another column": {"id": 3, "sound": {"array": stereo, "sampling_rate": RATE}},
        "decoder": SimpleNamespace(get_all_samples=lambda: decoded),
    }


class TestKindsOfItems:
    def test_all_kinds_have_one_embedding(self, model, items, stereo):
        embeddings = encode(model, list(items.values()), RATE)
        expected = by_forward(model, [stereo])[0]
        for name, embedding in zip(items, embeddings):
            assert np.abs(embedding - expected).max() <= 1e-5 * np.abs(expected).max(), name

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_float_types(self, model, stereo, dtype):
        tensor = torch.from_numpy(stereo[0]).to(dtype)
        assert np.array_equal(encode(model, tensor, RATE), encode(model, tensor.float(), RATE))

    def test_one_item_is_told_from_several(self, model, items):
        for name, item in items.items():
            expected = (1, SIZE) if name == "one channel in a list" else (SIZE,)  # an array (1, samples) is a batch
            assert encode(model, item, RATE).shape == expected, name

    @pytest.mark.parametrize(
        "several",
        [list, tuple, iter, np.stack, lambda clips: torch.tensor(np.stack(clips)), lambda clips: [*map(list, clips)]],
    )
    def test_several(self, model, several):
        clips = [noise(20_000, seed=seed) for seed in range(3)]
        assert_close(encode(model, several(clips), RATE), by_forward(model, clips))

    @pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
    def test_channels_are_averaged_where_the_call_says_so(self, model, stereo, kind):
        mono = by_forward(model, [stereo.mean(0)])
        assert_close(encode(model, kind(stereo), RATE, channels_first=True), mono[0])
        assert_close(encode(model, kind(stereo), RATE), by_forward(model, list(stereo)))  # a batch of two
        assert_close(encode(model, [kind(stereo)], RATE, channels_first=True), mono)
        assert_close(encode(model, kind(np.stack([stereo, 2 * stereo])), RATE, channels_first=True)[:1], mono)
        assert encode(model, kind(np.stack([stereo] * 3)), RATE, channels_first=True).shape == (3, SIZE)
        assert_close(encode(model, kind(stereo[0]), RATE, channels_first=True), by_forward(model, [stereo[0]])[0])

    @pytest.mark.parametrize("kind", [np.zeros, torch.zeros])
    def test_axes_that_could_mean_two_things(self, model, kind):
        with pytest.raises(
            ValueError, match=r"\(2, 4000\): one clip \(channels, samples\), or 2 clips .* samples\)\?"
        ):
            encode(model, [kind((2, 4000))], RATE)
        for array in (kind((4000, 2)), kind((4000, 1))):
            with pytest.raises(ValueError, match=r"one clip \(samples, channels\), or 4000 clips \(batch, samples\)"):
                encode(model, array, RATE, on_error="skip")
        for array in (kind((3, 2, 4000)), kind((1, 3, 2, 4000)), kind(())):
            with pytest.raises(ValueError, match=r"expected \(samples,\) for one clip or \(batch, samples\)"):
                encode(model, array, RATE)

    @pytest.mark.parametrize("nothing", [[], (), iter([]), np.zeros((0, 5))])
    def test_no_items(self, model, nothing):
        assert encode(model, nothing, RATE).shape == (0, SIZE)

    def test_an_array_of_paths_is_several(self, model, items, stereo):
        paths = np.array([items["path"]] * 2)
        assert_close(encode(model, paths), by_forward(model, [stereo, stereo]))
        assert_close(encode(model, paths.astype(object)), by_forward(model, [stereo, stereo]))

    def test_neither_one_nor_several(self, model, items):
        with open(items["path"], "rb") as file, pytest.raises(TypeError, match="is a BufferedReader; expected a path"):
            encode(model, file)
        with pytest.raises(TypeError, match="`audio` is a int; expected a path, a URL, an array"):
            encode(model, 5)

    @pytest.mark.parametrize("item", ["a.wav", b"RIFF", {"array": [0.0], "sampling_rate": RATE}])
    def test_encode_items_takes_no_single_item(self, model, item):
        with pytest.raises(TypeError, match=r"`items` is a single .*; expected an iterable of items"):
            encode_items(model, item)

    @pytest.mark.parametrize("streamed", [False, True])
    def test_data_set(self, model, streamed, tmp_path):
        clips = [noise(10_000, seed=seed) for seed in range(3)]
        rows = {"sound": [{"bytes": wav(clip), "path": None} for clip in clips], "label": ["a", "b", "c"]}
        features = datasets.Features({"sound": EncodedAudio(), "label": datasets.Value("string")})
        dataset = datasets.Dataset.from_dict(rows, features=features)
        dataset = dataset.to_iterable_dataset() if streamed else dataset
        assert_close(encode(model, dataset), by_forward(model, clips))
        typed = dataset.cast_column("sound", datasets.Audio())  # would decode with torchcodec if it were asked to
        assert_close(encode(model, typed), by_forward(model, clips))

    def test_data_set_of_arrays(self, model):
        clips = [noise(10_000, seed=seed) for seed in range(2)]
        dataset = datasets.Dataset.from_dict({"array": [clip.tolist() for clip in clips], "sampling_rate": [RATE] * 2})
        assert_close(encode(model, dataset), by_forward(model, clips))

    def test_data_set_without_audio(self, model):
        with pytest.raises(ValueError, match="the data set has no audio column"):
            encode(model, datasets.Dataset.from_dict({"text": ["a"]}))

    @pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 192_000])
    def test_any_rate_is_resampled_as_pre_training_does(self, model, rate, tmp_path):
        sound = noise(rate * 2, channels=2)
        resampled = soxr.resample(sound.mean(0), rate, RATE, quality="HQ")
        path = tmp_path / "sound.wav"
        path.write_bytes(wav(sound, rate))
        expected = by_forward(model, [resampled])[0]
        for item in (path, {"array": sound, "sampling_rate": rate}):
            assert_close(encode(model, item), expected)
        assert_close(encode(model, sound, rate, channels_first=True), expected)

    def test_decoders_are_read_in_ranges(self, model):
        sound = noise(RATE * 130)
        asked = []

        def play(start, stop):
            asked.append((start, stop))
            return SimpleNamespace(data=torch.from_numpy(sound[None, round(start * RATE) : round(stop * RATE)]))

        decoder = SimpleNamespace(
            metadata=SimpleNamespace(sample_rate=RATE, duration_seconds=130.0),
            get_samples_played_in_range=play,
            get_all_samples=None,
        )
        assert_close(encode(model, decoder), encode(model, sound, RATE))
        assert asked == [(0, 60), (60, 120), (120, 180), (180, 240), (180, 10**9)]  # a gap may follow 130 s
        with pytest.raises(ValueError, match="Clip 0 is at 16000 Hz, but `sampling_rate` is 8000 Hz"):
            encode(model, decoder, 8_000)
