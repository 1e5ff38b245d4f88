"""Types of samples: kept until they are scaled, or refused where the full scale is unknown."""

from array import array

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from embed_runs import RATE, make_model
from small_models import assert_close

from mtslvr_hf import MTSLVRFeatureExtractor
from mtslvr_hf.embedding import encode

PCM = (8000 * np.random.default_rng(0).standard_normal(6000)).clip(-32768, 32767).astype(np.int16)
FLOATS = PCM.astype(np.float32) / 32768
INT16 = datasets.List(datasets.Value("int16"))


@pytest.fixture(scope="module")
def embed():
    """Embeddings (clips, D) or (D,)."""
    model, extractor = make_model(), MTSLVRFeatureExtractor()
    return lambda audio, *options, **named: encode(model, audio, *options, feature_extractor=extractor, **named)


def prepare(audio, rate=RATE):
    return MTSLVRFeatureExtractor()(audio, rate, return_tensors="pt")["input_values"]


SAME = {
    "int32": PCM.astype(np.int32) * 65536,
    "big-endian": PCM.astype(">i2"),
    "big-endian floats": FLOATS.astype(">f4"),
    "array.array": array("h", PCM.tolist()),
    "pandas.Series": pd.Series(PCM),
    "pyarrow.Array": pa.array(PCM),
    "pyarrow.ChunkedArray": pa.chunked_array([PCM[:100], PCM[100:]]),
    "list of numpy.int16": list(PCM),
    "list of floats": FLOATS.tolist(),
    "dictionary": {"array": PCM, "sampling_rate": np.int64(RATE)},
    "dictionary of tensors": {"array": torch.from_numpy(PCM), "sampling_rate": torch.tensor(RATE)},
}


@pytest.mark.parametrize("kind", SAME)
def test_a_clip_is_scaled_by_its_type(kind, embed):
    right = prepare(FLOATS)
    torch.testing.assert_close(prepare(SAME[kind]), right)
    assert_close(embed(SAME[kind], RATE), embed(FLOATS, RATE))


def test_data_sets_keep_the_type_of_their_column(embed):
    right, rate = embed([FLOATS, FLOATS], RATE), datasets.Value("int64")
    clips = [{"array": PCM, "sampling_rate": RATE}] * 2
    nested = datasets.Features({"audio": {"array": INT16, "sampling_rate": rate}, "label": datasets.Value("string")})
    flat = datasets.Features({"array": INT16, "sampling_rate": rate})
    samples = datasets.Features({"audio": INT16})
    for made in (
        datasets.Dataset.from_dict({"audio": clips, "label": ["a", "b"]}, features=nested),
        datasets.Dataset.from_dict({"array": [PCM] * 2, "sampling_rate": [RATE] * 2}, features=flat),
        datasets.Dataset.from_dict({"audio": [PCM] * 2}, features=samples),
    ):
        given = () if "label" in made.features or "array" in made.features else (RATE,)
        for dataset in (made, made.with_format("numpy"), made.with_format("torch"), made.to_iterable_dataset()):
            assert_close(embed(dataset, *given), right)
        if "audio" in made.features:
            assert_close(embed(made["audio"], *given), right)


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_a_batch_of_rows_is_several_clips(form, embed):
    right = embed([FLOATS, FLOATS], RATE)
    clips = [{"array": FLOATS, "sampling_rate": RATE}] * 2
    made = datasets.Dataset.from_dict({"audio": clips, "label": ["a", "b"]}).with_format(form)
    flat = datasets.Dataset.from_dict({"array": [FLOATS] * 2, "sampling_rate": [RATE] * 2}).with_format(form)
    for rows in (made[:2], flat[:2]):
        assert_close(embed(rows), right)
        assert prepare(rows, None).shape == (2, 6000)
    assert_close(embed(made[0]), right[0])


REFUSED = {
    "list of integers": (PCM.tolist(), "list of integers, whose full scale is unknown"),
    "tuple of integers": (tuple(PCM.tolist()), "list of integers, whose full scale is unknown"),
    "list of bools": ([True, False] * 100, "list of integers"),
    "integers in a dictionary": ({"array": PCM.tolist(), "sampling_rate": RATE}, "list of integers"),
    "int64": (PCM.astype(np.int64), r"torch.int64, which has no full scale.*astype\(numpy.int16\)"),
    "uint16": (PCM.astype(np.uint16), "no full scale"),
    "masked": (np.ma.masked_less(FLOATS, 0), "masked samples"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_samples_without_a_full_scale_are_refused(kind, embed):
    audio, message = REFUSED[kind]
    for way in (lambda: embed(audio, RATE), lambda: prepare(audio)):
        with pytest.raises(ValueError, match=message):
            way()


def test_rows_of_integers_are_refused_where_the_type_is_lost(embed):
    clip = {"array": PCM, "sampling_rate": RATE}
    features = datasets.Features({"audio": {"array": INT16, "sampling_rate": datasets.Value("int64")}})
    dataset = datasets.Dataset.from_dict({"audio": [clip]}, features=features)
    for row in (dataset[0], dataset.with_format("numpy")[0], dataset.with_format("torch")[0]):
        with pytest.raises(ValueError, match=r"no full scale|full scale is unknown"):
            embed(row)


def test_what_is_no_clip_and_no_list_of_clips(embed):
    for way in (lambda audio: embed(audio, RATE), prepare):
        with pytest.raises(TypeError, match=r"pair of an array and a rate came.*`sampling_rate`"):
            way((FLOATS, RATE))
        with pytest.raises(TypeError, match=r"A DataFrame came; .*choose one column"):
            way(pd.DataFrame({"a": FLOATS, "b": FLOATS}))


def test_data_sets_with_several_columns_or_splits(embed):
    rows = [{"bytes": b"x", "path": None}]
    dataset = datasets.Dataset.from_dict({"left": rows, "right": rows})
    with pytest.raises(ValueError, match=r"several audio columns \(left, right\); choose one with `dataset.select"):
        embed(dataset)
    with pytest.raises(TypeError, match=r"a DatasetDict of the splits train, test came.*dataset\['train'\]"):
        embed(datasets.DatasetDict(train=dataset, test=dataset))
