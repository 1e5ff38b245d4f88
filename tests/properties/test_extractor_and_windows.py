"""Properties of the feature extractor, and of the windows that `encode` reads: any clip, rate, type and batch."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from audio_files import encode, row
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_model

from mtslvr_hf import MTSLVRFeatureExtractor
from mtslvr_hf.audio import libsndfile
from mtslvr_hf.embedding import inputs
from mtslvr_hf.embedding.windows import Ending, WindowReader

RATE = 16_000
RATES = [8_000, 11_025, 22_050, 44_100, 48_000]
NORMALIZATIONS = ["global", "sample", "none"]
INTEGERS = {"uint8": (128, 128), "int8": (0, 128), "int16": (0, 2**15), "int32": (0, 2**31)}  # zero, full scale


@st.composite
def clips(draw, smallest=1, largest=2_000, channels=None):
    """Noise of any level with an offset that drifts, float32 (samples,), or (channels, samples)."""
    shape = (draw(st.integers(smallest, largest)),)
    shape = shape if channels is None else (draw(st.integers(1, channels)), *shape)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    drift = np.linspace(*random.uniform(-1, 1, 2), shape[-1])
    return (random.standard_normal(shape) * 10 ** random.uniform(-2, 0) + drift).astype(np.float32)


def values_of(clip, normalization="none", rate=RATE, **options):
    extractor = MTSLVRFeatureExtractor(normalization=normalization)
    return extractor(clip, sampling_rate=rate, return_tensors="np", **options)["input_values"][0]


def assert_close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@given(st.sampled_from(sorted(INTEGERS)), st.integers(1, 500), st.integers(0, 2**32 - 1), st.sampled_from("<>"))
def test_integers_of_any_type_and_byte_order_are_divided_by_their_full_scale(name, samples, seed, order):
    limits = np.iinfo(name)
    whole = np.random.default_rng(seed).integers(limits.min, limits.max, samples, dtype=name, endpoint=True)
    zero, full = INTEGERS[name]
    expected = (whole.astype(np.float64) - zero) / full
    assert np.abs(expected).max() <= 1
    assert_close(values_of(whole.astype(whole.dtype.newbyteorder(order))), expected.astype(np.float32))


@given(clips(), st.integers(1, 3))
def test_a_clip_is_the_same_in_every_form(clip, step):
    expected = values_of(clip.copy())
    spread = np.repeat(clip, step)[::step]  # not contiguous
    frozen = clip.copy()
    frozen.flags.writeable = False
    forms = [spread, frozen, clip.astype(np.float64), clip.astype(">f4"), torch.from_numpy(clip), clip.tolist()]
    forms += [[clip], clip[None], {"array": clip, "sampling_rate": RATE}, encode(clip, RATE, "WAV", "FLOAT")]
    forms += [row(encode(clip, RATE, "WAV", "FLOAT"))]
    for form in forms:
        assert np.array_equal(values_of(form, rate=None if isinstance(form, (bytes, dict)) else RATE), expected)


@given(clips(4, channels=4), st.randoms())  # more channels than samples are refused
def test_channels_are_averaged_in_any_order(clip, random):
    shuffled = clip[random.sample(range(len(clip)), len(clip))]
    assert_close(values_of(clip, channels_first=True), clip.mean(axis=0))
    assert_close(values_of({"array": shuffled, "sampling_rate": RATE}), clip.mean(axis=0))
    assert_close(values_of(encode(clip.T, RATE, "WAV", "FLOAT"), rate=None), clip.mean(axis=0))


@given(
    st.lists(clips(largest=500), min_size=1, max_size=5),
    st.sampled_from(NORMALIZATIONS),
    st.none() | st.integers(1, 600),
    st.booleans(),
    st.sampled_from([0.0, -2.0]),
)
def test_a_batch_is_its_clips_with_padding_behind_the_mask(batch, normalization, max_length, truncation, value):
    extractor = MTSLVRFeatureExtractor(normalization=normalization, padding_value=value)
    options = {"padding": "max_length", "max_length": max_length} if max_length else {}
    options["truncation"] = truncation and max_length is not None
    inputs = extractor(batch, sampling_rate=RATE, return_tensors="np", **options)
    lengths = [min(len(clip), max_length) if options["truncation"] else len(clip) for clip in batch]
    assert inputs["input_values"].shape == (len(batch), max(*lengths, max_length or 0, 1))
    for clip, length, values, mask in zip(batch, lengths, inputs["input_values"], inputs["attention_mask"]):
        assert np.array_equal(values[:length], values_of(clip, normalization)[:length])
        assert (values[length:] == value).all()
        assert mask.tolist() == [1] * length + [0] * (len(values) - length)


@given(clips(smallest=2), st.floats(0.01, 100), st.floats(-1, 1))
def test_normalized_by_itself_a_clip_has_mean_0_and_deviation_1_at_any_level_and_offset(clip, level, offset):
    values = values_of(clip, "sample").astype(np.float64)
    assert abs(values.mean()) < 1e-2 and abs(values.std() - 1) < 1e-2
    if abs(clip.mean()) < 100 * clip.std():  # beyond, float32 loses the sound beside the offset
        assert_close(values_of(level * (clip + np.float32(offset * clip.std())), "sample"), values, 1e-2)
    assert not values_of(np.full_like(clip, offset), "sample").any()


@given(st.sampled_from(RATES), st.floats(0.05, 0.4), st.floats(0, 6), st.integers(2_000, 6_000))
def test_another_rate_keeps_the_pitch_and_the_time_of_a_tone(rate, place, phase, samples):
    hertz = place * min(rate, RATE)
    values = values_of(np.sin(2 * np.pi * hertz * np.arange(samples) / rate + phase), rate=rate)
    assert abs(len(values) - samples * RATE / rate) <= 1
    expected = np.sin(2 * np.pi * hertz * np.arange(len(values)) / RATE + phase)
    middle = slice(len(values) // 3, -len(values) // 3)  # the ends ring
    assert np.abs(values - expected)[middle].max() < 5e-3


@given(st.lists(clips(largest=300), min_size=1, max_size=4), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_a_sample_that_is_not_finite_is_refused_with_the_number_of_its_clip(batch, value, data):
    number = data.draw(st.integers(0, len(batch) - 1))
    batch[number][data.draw(st.integers(0, len(batch[number]) - 1))] = value
    with pytest.raises(ValueError, match=f"Clip {number} has samples that are NaN or infinite"):
        MTSLVRFeatureExtractor()(batch, sampling_rate=RATE)


@given(
    clips(2, 3_000, channels=2),
    st.sampled_from([RATE, *RATES]),
    st.integers(1, 2_500),
    st.sampled_from(NORMALIZATIONS),
    st.booleans(),
    st.integers(2, 3_000),
)
def test_windows_are_the_normalized_clip_cut_and_the_last_one_repeated(clip, rate, size, normalization, file, block):
    extractor = MTSLVRFeatureExtractor(normalization=normalization)
    item = encode(clip.T, rate, "WAV", "FLOAT") if file else {"array": clip, "sampling_rate": rate}
    with patch.object(inputs, "BLOCK_SAMPLES", block), patch.object(libsndfile, "BLOCK_SAMPLES", block):
        *windows, ending = WindowReader(extractor, None, size).read(0, item)
    whole = extractor.prepare({"array": clip, "sampling_rate": rate}).numpy()
    assert ending == Ending(len(whole))
    assert len(windows) == -(-len(whole) // size)
    for number, window in enumerate(windows):
        expected = np.resize(whole[number * size : (number + 1) * size], size)
        assert window.dtype == np.float32
        assert_close(window, expected, 1e-3)  # statistics are sums in another order


@given(clips(smallest=2), st.integers(1, 500), st.sampled_from(NORMALIZATIONS), st.data())
def test_a_clip_that_breaks_ends_with_its_error_and_no_further_window(clip, size, normalization, data):
    place = data.draw(st.integers(0, len(clip) - 1))
    clip[place] = np.nan
    reader = WindowReader(MTSLVRFeatureExtractor(normalization=normalization), RATE, size)
    *windows, ending = reader.read(3, encode(clip, RATE, "WAV", "FLOAT"))
    assert ending.error is not None and ending.error.reason == "non_finite"
    assert len(windows) * size <= place and all(np.isfinite(window).all() for window in windows)


@settings(max_examples=settings.default.max_examples // 5)
@given(st.lists(clips(largest=25_000), min_size=2, max_size=4), st.integers(1, 5), st.randoms())
def test_an_embedding_depends_on_its_clip_alone(batch, batch_size, random):
    model = make_model()
    order = random.sample(range(len(batch)), len(batch))
    options = {"sampling_rate": RATE, "feature_extractor": MTSLVRFeatureExtractor(normalization="sample")}
    together = model.encode([batch[n] for n in order], batch_size=batch_size, **options)
    for embedding, number in zip(together, order):
        assert_close(embedding, model.encode(batch[number], **options), 1e-4)
