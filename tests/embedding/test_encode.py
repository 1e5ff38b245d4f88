"""encode and encode_items against the plain forward, in bounded memory, and what they leave alone."""

import copy
import inspect
import itertools
import shutil
import threading
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from small_models import RATE, SIZE, assert_close, by_forward, make_model, noise
from tqdm import tqdm
from transformers import AutoModel

from mtslvr_hf import (
    MTSLVRFeatureExtractor,
    MTSLVRForAudioClassification,
    MTSLVRForPreTraining,
    MTSLVRModel,
    embedding,
)
from mtslvr_hf.embedding import TimedEmbeddings, encode, encode_items


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def clips():
    """From one sample to more than six windows, one of them exactly two."""
    return [noise(samples, seed=seed) for seed, samples in enumerate((16_000, 5, 40_000, 1, 32_000, 100_000, 80))]


class TestAgainstTheForward:
    @pytest.mark.parametrize("batch_size", [1, 3, 4, 32])
    @pytest.mark.parametrize("num_workers", [0, 1, 4])
    def test_embeddings_are_those_of_the_forward(self, model, clips, batch_size, num_workers):
        embeddings = encode(model, clips, RATE, batch_size=batch_size, num_workers=num_workers)
        assert_close(embeddings, by_forward(model, clips))

    @pytest.mark.parametrize("changes", [{"frontend": "waveform"}, {"adapter_type": "none", "shared_head": True}])
    def test_other_networks(self, clips, changes):
        model = make_model(**changes)
        assert_close(encode(model, clips, RATE, batch_size=4), by_forward(model, clips))

    @pytest.mark.parametrize("normalization", ["global", "sample", "none"])
    def test_normalization_is_the_extractor_s(self, clips, normalization):
        # On log-mel input: a phase can jump from -pi to pi when a sample changes by its last bit.
        model = make_model(frontend="mel")
        extractor = MTSLVRFeatureExtractor(normalization=normalization)
        clips = [0.7 + clip for clip in clips if len(clip) > 1]
        embeddings = encode(model, clips, RATE, feature_extractor=extractor)
        assert_close(embeddings, by_forward(model, clips, extractor))
        other = MTSLVRFeatureExtractor(normalization="none" if normalization == "global" else "global")
        assert not np.allclose(embeddings, by_forward(model, clips, other), rtol=1e-3)

    def test_statistics_of_a_sample_are_those_of_all_blocks(self):
        model = make_model(frontend="mel")
        clip = np.concatenate([noise(300_000), 5 + 3 * noise(300_000, seed=1)])  # more than one block
        extractor = MTSLVRFeatureExtractor(normalization="sample")
        embedding = encode(model, clip, RATE, feature_extractor=extractor)
        assert_close(embedding[None], by_forward(model, [clip], extractor))

    def test_tasks_in_the_order_asked_for(self, model, clips):
        both = encode(model, clips, RATE)
        swapped = encode(model, clips, RATE, tasks=["predictive", "contrastive"])
        assert_close(swapped, np.hstack([both[:, SIZE // 2 :], both[:, : SIZE // 2]]))
        assert_close(encode(model, clips, RATE, tasks="predictive"), both[:, SIZE // 2 :])
        with pytest.raises(ValueError, match="`tasks` must name some of"):
            encode(model, clips, RATE, tasks=["melody"])

    def test_added_tasks_and_merged_networks(self, clips):
        model = make_model()
        model.add_adapter("birds", "bn")
        assert encode(model, clips, RATE).shape == (len(clips), SIZE)
        tasks = ["birds", "contrastive"]
        expected = by_forward(model, clips, tasks=tasks)
        assert_close(encode(model, clips, RATE, tasks=tasks), expected)
        model.set_adapter(tasks)
        assert_close(encode(model, clips, RATE), expected)
        assert encode(model, np.zeros(0), RATE, on_error="skip").shape == expected[0].shape
        model.merge_adapters()
        assert_close(encode(model, clips, RATE), expected)

    def test_random_lists_in_random_batches(self, model):
        generator = np.random.default_rng(3)
        for _ in range(10):
            clips = [noise(n) for n in generator.integers(1, 50_000, generator.integers(1, 6))]
            options = {"batch_size": int(generator.integers(1, 9)), "num_workers": int(generator.integers(0, 4))}
            assert_close(encode(model, clips, RATE, **options), by_forward(model, clips))


class TestThreads:
    @pytest.fixture
    def batches(self, model):
        """Number of windows of each batch, with the threads of torch that computed it and autocast's state."""
        seen = []
        hook = model.inference_network().register_forward_pre_hook(
            lambda _, inputs: seen.append((len(inputs[0]), torch.get_num_threads(), torch.is_autocast_enabled("cpu")))
        )
        yield seen
        hook.remove()

    @pytest.fixture
    def three(self):
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        yield
        torch.set_num_threads(before)

    def test_each_runs_the_network_on_one_core(self, model, batches, three):
        clips = [noise(RATE, seed=seed) for seed in range(14)]
        embeddings = encode(model, clips, RATE, batch_size=4, num_workers=2)
        assert sorted(batches) == [(3, 1, False)] * 2 + [(4, 1, False)] * 2  # the last six are divided
        assert_close(embeddings, by_forward(model, clips))

    @pytest.mark.parametrize("num_workers", [1, 2, 5])
    def test_batches_of_an_iterator_do_not_depend_on_their_number(self, model, batches, num_workers):
        encode(model, iter([noise(RATE)] * 14), RATE, batch_size=4, num_workers=num_workers)
        assert sorted(windows for windows, *_ in batches) == [2, 4, 4, 4]

    def test_batches_of_fewer_windows_than_threads_run_in_threads(self, model, batches, three):
        encode(model, iter([noise(RATE)] * 4), RATE, batch_size=2, num_workers=4)
        assert batches == [(2, 1, False)] * 2

    def test_the_caller_runs_it_with_all_cores(self, model, batches, three):
        encode(model, [noise(RATE)], RATE, num_workers=2)  # fewer windows than threads
        encode(model, [noise(RATE)] * 5, RATE, batch_size=4, num_workers=0)
        assert batches == [(1, 3, False), (4, 3, False), (1, 3, False)]

    def test_other_threads_keep_theirs(self, model, three):
        for count in (1, 9):
            encode(model, [noise(RATE)] * count, RATE, batch_size=2, num_workers=2)
        others = []
        thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), others) == (3, [3])

    def test_batches_hold_80_seconds_at_most(self, model, batches):
        encode(model, [noise(RATE * 100)], RATE, batch_size=1000, num_workers=0)
        assert [windows for windows, *_ in batches] == [80, 20]

    def test_autocast_is_that_of_the_caller(self, model, batches):
        with torch.autocast("cpu", torch.bfloat16):
            encode(model, [noise(RATE)] * 9, RATE, batch_size=2, num_workers=2)
        assert all(autocast for *_, autocast in batches)

    def test_the_end_does_not_wait_for_an_item_that_does_not_come(self, model):
        """A thread that runs the network waits for a thread that decodes, which waits for the items."""
        comes = threading.Event()

        def items():
            yield from [noise(RATE)] * 4
            comes.wait(20)

        results = encode_items(model, items(), RATE, batch_size=1, num_workers=2)
        assert next(results).index == 0
        started = threading.active_count()
        results.close()
        assert threading.active_count() <= started - 2  # all but the decoding ones, which wait for the item
        comes.set()


class TestOverTime:
    def test_frames_of_a_long_clip(self, model):
        clip = noise(int(3.6 * RATE))
        timed = encode(model, clip, RATE, return_timestamps=True, batch_size=3)
        assert isinstance(timed, TimedEmbeddings)
        per_window = len(model.frame_centers(1))
        assert timed.seconds.tolist() == [0.0, 1.0, 2.0, 3.0] and per_window == 1
        for number in range(4):  # one frame a window: each is the embedding of its window
            window = np.resize(clip[number * RATE : (number + 1) * RATE], RATE)
            assert_close(timed.embeddings[number], by_forward(model, [window])[0])

    def test_mean_of_whole_windows_is_the_embedding(self):
        model = make_model(window_seconds=5.0)
        clip = noise(10 * RATE)
        embeddings, seconds = encode(model, clip, RATE, return_timestamps=True)
        assert embeddings.shape == (len(seconds), SIZE) and len(seconds) == 10
        assert_close(embeddings.mean(0), encode(model, clip, RATE))
        starts = np.array([0.0, 5.0])[:, None] + model.frame_centers(5).numpy()
        assert np.allclose(seconds, starts.ravel())

    @pytest.mark.parametrize(("duration", "frames"), [(0.01, 1), (1.0, 1), (1.1, 2), (4.0, 4), (5.5, 6), (6.1, 7)])
    def test_frames_behind_the_end_are_left_out(self, duration, frames):
        model = make_model(window_seconds=5.0)
        embeddings, seconds = encode(model, noise(int(duration * RATE)), RATE, return_timestamps=True)
        assert len(embeddings) == len(seconds) == frames
        assert frames == 1 or seconds[-1] < duration

    def test_one_frame_stays_of_a_clip_that_ends_before_its_center(self):
        model = make_model(frontend="waveform")
        embeddings, seconds = encode(model, noise(50), RATE, return_timestamps=True)
        assert embeddings.shape == (1, SIZE) and seconds[0] > 50 / RATE

    def test_several_normalized_as_tensors(self, model):
        clips = [noise(20_000), noise(50_000)]
        results = encode(model, clips, RATE, return_timestamps=True, normalize=True, convert_to="torch")
        assert [tuple(timed.embeddings.shape) for timed in results] == [(2, SIZE), (4, SIZE)]
        for timed in results:
            assert timed.embeddings.dtype == torch.float32
            assert torch.allclose(timed.embeddings.norm(dim=1), torch.ones(len(timed.embeddings)))


class TestWhatComesBack:
    def test_normalize(self, model, clips):
        plain = encode(model, clips, RATE)
        assert_close(encode(model, clips, RATE, normalize=True), plain / np.linalg.norm(plain, axis=1, keepdims=True))

    def test_items_are_not_taken_by_looking_at_them(self, model, clips):
        for iterable in (iter(clips[:1]), tqdm(iter(clips[:1]), total=1, disable=True), clips[:1], tuple(clips[:1])):
            assert_close(encode(model, iterable, RATE), by_forward(model, clips[:1]))

    def test_tensors_can_be_trained_on(self, model, clips):
        embeddings = encode(model, clips, RATE, convert_to="torch")
        assert (embeddings.dtype, embeddings.device.type) == (torch.float32, "cpu")
        assert not embeddings.requires_grad and not embeddings.is_inference()
        single = encode(model, clips[0], RATE, convert_to="torch")
        torch.nn.Linear(SIZE, 2)(single).sum().backward()
        assert_close(single, embeddings[0])

    def test_float32_whatever_the_model_s_dtype(self, clips):
        model = make_model()
        expected = encode(model, clips, RATE)
        embeddings = encode(model.to(torch.bfloat16), clips, RATE)
        assert embeddings.dtype == np.float32
        assert 1e-4 < np.abs(embeddings - expected).max() / np.abs(expected).max() < 0.1

    def test_encoded(self, model):
        clips = [noise(24_000), noise(3_200), np.zeros(0)]
        results = list(encode_items(model, clips, RATE, return_timestamps=True))
        assert [result.index for result in results] == [0, 1, 2]
        assert [result.seconds for result in results] == [1.5, 0.2, 0.0]
        assert [result.windows for result in results] == [2, 1, 0]
        assert [result.error is None for result in results] == [True, True, False]
        assert [result.embedding is None for result in results] == [False, False, True]
        assert [None if result.frames is None else len(result.frames.seconds) for result in results] == [2, 1, None]
        assert torch.equal(results[0].frames.embeddings.mean(0), results[0].embedding)
        assert next(encode_items(model, clips, RATE)).frames is None

    @pytest.mark.parametrize("option", [{"convert_to": "list"}, {"on_error": "ignore"}])
    def test_unknown_choices(self, model, option):
        with pytest.raises(ValueError, match=r"must be one of 'numpy', 'torch'|must be one of 'raise', 'skip'"):
            encode(model, noise(5), RATE, **option)

    @pytest.mark.parametrize("option", [{"batch_size": 0}, {"num_workers": -1}])
    def test_wrong_numbers(self, model, option):
        with pytest.raises(ValueError, match=r"batch_size is 0; expected at least 1|num_workers is -1; expected at"):
            encode(model, noise(5), RATE, **option)


class TestTheMethod:
    def test_it_names_every_argument_of_the_function(self):
        method = list(inspect.signature(MTSLVRModel.encode).parameters.values())[1:]
        assert method == list(inspect.signature(encode).parameters.values())[1:]
        for parameter in method:
            assert f"            {parameter.name}: " in MTSLVRModel.encode.__doc__
            assert parameter.annotation not in ("Any", inspect.Parameter.empty)

    def test_it_hands_every_argument_on(self, model, monkeypatch):
        parameters = list(inspect.signature(MTSLVRModel.encode).parameters)[1:]
        given = {name: object() for name in parameters}
        monkeypatch.setattr(embedding, "encode", lambda *args, **options: (args, options))
        args, options = model.encode(**given)
        assert args == (model, given.pop("audio"), given.pop("sampling_rate"))
        assert options == given

    @pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
    def test_similarity(self, model, kind):
        a, b = kind([[3.0, 4.0], [1.0, 0.0]]), kind([[4.0, 3.0], [0.0, 2.0], [-3.0, -4.0]])
        torch.testing.assert_close(model.similarity(a, b), torch.tensor([[0.96, 0.8, -1.0], [0.8, 0.0, -0.6]]))
        torch.testing.assert_close(model.similarity(a[0], b), torch.tensor([[0.96, 0.8, -1.0]]))
        assert model.similarity(a[0], b[0]).shape == (1, 1)
        for other in (kind([1.0, 2.0, 3.0]), kind([[[1.0, 2.0]]])):
            with pytest.raises(ValueError, match=r"shapes \(2, 2\) and .*; expected \(n, D\) and \(m, D\)"):
                model.similarity(a, other)


class TestTheModel:
    @pytest.mark.parametrize("training", [True, False])
    def test_it_stays_as_it_is(self, clips, training):
        model = make_model().train(training)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        random_state = torch.get_rng_state()
        embeddings = encode(model, clips, RATE)
        assert model.training == training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random_state)
        assert_close(embeddings, by_forward(model, clips))

    @pytest.mark.parametrize("model_class", [MTSLVRForPreTraining, MTSLVRForAudioClassification])
    def test_every_class_has_the_method(self, clips, model_class):
        model = make_model(model_class=model_class)
        assert_close(model.encode(clips, RATE, batch_size=2), by_forward(model.mtslvr, clips))

    def test_a_changed_model_gives_other_embeddings(self, clips):
        model = make_model()
        before = encode(model, clips, RATE)
        with torch.no_grad():
            model.heads["contrastive"].bias.add_(100.0)
        after = encode(model, clips, RATE)
        assert np.allclose(after[:, : SIZE // 2] - before[:, : SIZE // 2], 100.0, rtol=1e-3)

    def test_the_extractor_beside_the_weights_is_used(self, model, clips, tmp_path):
        model.save_pretrained(tmp_path)
        without = MTSLVRModel.from_pretrained(tmp_path)
        extractor = MTSLVRFeatureExtractor(normalization="none")
        extractor.save_pretrained(tmp_path)
        with pytest.raises(OSError, match="had no feature extractor that could be loaded with the model: pass `featu"):
            encode(without, clips, RATE)
        loaded = MTSLVRModel.from_pretrained(tmp_path)
        MTSLVRFeatureExtractor(normalization="global").save_pretrained(tmp_path)  # of another run in this folder
        assert_close(encode(loaded, clips, RATE), by_forward(model, clips, extractor))
        (tmp_path / "preprocessor_config.json").unlink()
        assert_close(encode(copy.deepcopy(loaded), clips, RATE), by_forward(model, clips, extractor))
        (tmp_path / "preprocessor_config.json").write_text('{"normalization": "loud"}')
        with pytest.raises(OSError, match="`normalization` must be one of"):
            encode(MTSLVRModel.from_pretrained(tmp_path), clips, RATE)

    def test_the_extractor_is_found_as_the_weights_are(self, model, clips, tmp_path, monkeypatch):
        extractor = MTSLVRFeatureExtractor(normalization="none")
        for saved in (model, extractor):
            saved.save_pretrained(tmp_path / "runs/model")
        MTSLVRFeatureExtractor(normalization="global").save_pretrained(tmp_path / "runs")
        commit = tmp_path / "cache/models--org--name/snapshots" / ("a" * 40)
        shutil.copytree(tmp_path / "runs/model", commit)
        (tmp_path / "cache/models--org--name/refs").mkdir()
        (tmp_path / "cache/models--org--name/refs/main").write_text("a" * 40)
        monkeypatch.chdir(tmp_path)
        loaded = [
            AutoModel.from_pretrained("runs", subfolder="model"),
            AutoModel.from_pretrained("org/name", cache_dir="cache", local_files_only=True),
            AutoModel.from_pretrained("runs/model"),
        ]
        monkeypatch.chdir(tmp_path / "cache")
        for each in loaded:
            assert_close(each.encode(clips, RATE), by_forward(model, clips, extractor))

    def test_an_extractor_of_another_rate_is_refused(self, model):
        with pytest.raises(ValueError, match="gives 8000 Hz and the model takes 16000 Hz"):
            encode(model, noise(5), RATE, feature_extractor=MTSLVRFeatureExtractor(sampling_rate=8_000))

    def test_do_resample_off(self, model):
        extractor = MTSLVRFeatureExtractor(do_resample=False)
        encode(model, noise(500), RATE, feature_extractor=extractor)
        with pytest.raises(ValueError, match="Clip 0 is at 8000 Hz and the model takes 16000 Hz: resample it"):
            encode(model, noise(500), 8_000, feature_extractor=extractor)


class TestMemoryAndTime:
    def test_memory_does_not_grow_with_a_file(self, model, tmp_path):
        path = tmp_path / "long.wav"
        with soundfile.SoundFile(path, "w", RATE, 1, subtype="PCM_U8") as file:
            for _ in range(20):
                file.write(noise(RATE * 60))
        encode(model, noise(RATE * 10), RATE, batch_size=8)  # what is made once
        tracemalloc.start()
        try:
            encode(model, path, batch_size=8, normalize=True)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 12 * 2**20  # decoded, the file has 77 MB

    def test_items_are_taken_as_they_are_needed(self, model):
        taken = []

        def endless():
            for number in itertools.count():
                taken.append(number)
                yield noise(20_000)  # two windows

        before = threading.active_count()
        results = encode_items(model, endless(), RATE, batch_size=4, num_workers=2)
        assert not taken
        assert [next(results).index for _ in range(5)] == list(range(5))
        results.close()
        assert threading.active_count() == before
        # Two batches of two items are returned; as many are gathered, in work and, twice, waiting.
        assert 5 <= len(taken) <= 6 * 4 + 2

    def test_threads_end_with_an_error(self, model):
        before = threading.active_count()
        with pytest.raises(ValueError, match="Clip 3 has no samples"):
            encode(model, [noise(50_000), noise(9), noise(9), np.zeros(0), *[noise(9)] * 50], RATE, num_workers=3)
        assert threading.active_count() == before

    def test_an_error_of_the_iterator_comes_at_its_turn(self, model):
        def failing():
            yield noise(16_000)
            yield noise(16_000)
            raise KeyError("no more rows")

        results = encode_items(model, failing(), RATE, batch_size=1)
        assert [next(results).index, next(results).index] == [0, 1]
        with pytest.raises(KeyError, match="no more rows"):
            next(results)


def test_progress_bar(model, capsys):
    clips = [noise(100)] * 12
    encode(model, clips, RATE)
    assert capsys.readouterr().err == ""  # not a terminal
    encode(model, clips, RATE, show_progress_bar=True)
    assert "12/12" in capsys.readouterr().err


@pytest.mark.parametrize(("audio", "shown"), [([1] * 11, True), ([1] * 10, False), (iter([1]), True)])
def test_progress_bar_on_a_terminal(model, audio, shown, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    items = (np.full(5, 0.1, dtype=np.float32) for _ in audio)
    encode(model, list(items) if isinstance(audio, list) else items, RATE)
    assert ("embedding" in capsys.readouterr().err) == shown


class TestCompiled:
    def test_every_batch_has_the_shape_that_was_compiled(self, clips, monkeypatch):
        """Traced only; the backend is asked once for each shape."""
        model, shapes, compiled = make_model(), [], torch.nn.Module.compile

        def backend(graph, inputs):
            shapes.append([tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor) and x.ndim == 2])
            return graph.forward

        monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend=backend))
        for number in (len(clips), 2):  # 14 windows, then 2: neither is a multiple of 4
            embeddings = encode(model, clips[:number], RATE, batch_size=4, compile=True)
            assert_close(embeddings, by_forward(model, clips[:number]))
        assert len(shapes) == 1 and (4, RATE) in shapes[0]
        assert_close(encode(model, clips[:2], RATE, batch_size=4), by_forward(model, clips[:2]))
        assert len(shapes) == 1

    def test_a_merged_model_stays_as_it_is(self, clips, monkeypatch):
        monkeypatch.setattr(torch.nn.Module, "compile", lambda module: seen.append(module))
        model, seen = make_model().merge_adapters(), []
        encode(model, clips[:1], RATE, compile=True)
        assert len(seen) == 1 and seen[0] is not model

    @pytest.mark.slow
    def test_with_the_real_compiler(self, clips):
        model = make_model()
        assert_close(encode(model, clips, RATE, batch_size=4, compile=True), by_forward(model, clips))
