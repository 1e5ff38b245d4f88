"""mteb's model protocol, with and without mteb, and its tasks on a local folder of parquet."""

import io

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, Value
from small_models import assert_close
from torch.utils.data import DataLoader
from transformers import AutoFeatureExtractor, AutoModel

from mtslvr_hf.harnesses.mteb import MTSLVREncoder

RATE = 22_050
LABELS = ("hiss", "hum", "click")


def sound(label, number, seconds=0.7):
    """Encoded sounds of three kinds that any embedding tells apart."""
    generator = np.random.default_rng(number)
    time = np.arange(int((seconds + 0.1 * (number % 3)) * RATE)) / RATE
    samples = {
        "hiss": 0.3 * generator.standard_normal(len(time)),
        "hum": 0.5 * np.sin(2 * np.pi * (90 + number) * time) + 1e-3 * generator.standard_normal(len(time)),
        "click": (np.arange(len(time)) % 2205 < 20) * generator.uniform(0.3, 0.9),
    }[label]
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="FLAC")
    return buffer.getvalue()


def audio_dataset(rows, **columns):
    """As load_dataset makes it of encoded files, without the torchcodec that datasets wants for writing them."""
    features = Features({"audio": Audio(), **columns})
    return Dataset(pa.Table.from_pylist(rows, schema=features.arrow_schema))


@pytest.fixture(scope="module")
def dataset():
    rows = [
        {"audio": {"bytes": sound(label, number), "path": None}, "label": place}
        for number in range(12)
        for place, label in enumerate(LABELS)
    ]
    return audio_dataset(rows, label=Value("int64"))


@pytest.fixture(scope="module")
def encoder(folder):
    return MTSLVREncoder(str(folder), device="cpu")


def encode(encoder, inputs, **options):
    return encoder.encode(inputs, task_metadata=None, hf_split="test", hf_subset="default", **options)


def test_files_are_embedded_as_encode_does(encoder, dataset):
    embeddings = encode(encoder, DataLoader(dataset, batch_size=5), batch_size=7)
    assert embeddings.shape == (36, 8) and embeddings.dtype == np.float32
    alone = encoder.model.encode(sound("hum", 4), feature_extractor=encoder.feature_extractor)
    assert_close(embeddings[4 * 3 + 1], alone)


def test_decoded_batches_are_embedded_too(encoder, dataset):
    clips = []
    for row in dataset.cast_column("audio", Audio(decode=False))[:5]["audio"]:
        samples, rate = soundfile.read(io.BytesIO(row["bytes"]), dtype="float32")
        clips.append({"array": samples, "sampling_rate": rate})
    batches = [{"audio": clips[:3]}, {"audio": clips[3:]}]
    expected = encode(encoder, DataLoader(dataset))[:5]
    assert_close(encode(encoder, batches), expected)


def test_chosen_tasks(folder, encoder, dataset):
    predictive = MTSLVREncoder(str(folder), device="cpu", tasks="predictive")
    inputs = DataLoader(dataset.select(range(3)))
    assert_close(encode(predictive, inputs), encode(encoder, inputs)[:, 4:])


def test_similarity(encoder):
    a, b = np.array([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    torch.testing.assert_close(encoder.similarity(a, b), torch.tensor([[0.96, 0.8], [0.8, 0.0]]))
    torch.testing.assert_close(encoder.similarity_pairwise(a, b), torch.tensor([0.96, 0.0]))
    assert encoder.similarity(a[0], b[0]).shape == (1, 1)


def test_wrong_input(encoder, dataset):
    with pytest.raises(ValueError, match="split test, subset default has no audio column, only label"):
        encode(encoder, DataLoader(dataset.remove_columns("audio")))
    with pytest.raises(ValueError, match="these models embed only audio"):
        encode(encoder, [{"text": ["a dog barks"]}])
    with pytest.raises(ValueError, match="`precision` is 'int8'"):
        encode(encoder, [], precision="int8")
    broken = audio_dataset([{"audio": {"bytes": b"no audio", "path": None}}])
    with pytest.raises(ValueError, match="Clip 0"):
        encode(encoder, DataLoader(broken))


def columns(rows):
    """As mteb collates rows."""
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.fixture(scope="module")
def mteb():
    return pytest.importorskip("mteb")


@pytest.fixture(scope="module")
def task(mteb, dataset, tmp_path_factory):
    """Makes a task of a local parquet folder, read as mteb reads those on the Hub."""

    def make(base, kind, main_score, dataset=dataset):
        folder = tmp_path_factory.mktemp("sounds")
        (folder / "data").mkdir()
        for split in ("train", "test"):
            dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        metadata = mteb.TaskMetadata(
            name=f"LocalSounds{kind}",
            description="Synthetic sounds.",
            dataset={"path": str(folder), "revision": "1"},
            type=kind,
            category="a2c",
            modalities=["audio"],
            eval_splits=["test"],
            eval_langs=["zxx-Zxxx"],
            main_score=main_score,
        )
        attributes = {"metadata": metadata, "input_column_name": "audio", "label_column_name": "label"}
        return type(f"LocalSounds{kind}", (base,), attributes)()

    return make


class TestInMTEB:
    def test_protocol_and_metadata(self, mteb, encoder, folder):
        from mteb.models import EncoderProtocol

        assert isinstance(encoder, EncoderProtocol)
        meta = encoder.mteb_model_meta
        assert meta.name == "local/tiny" and meta.embed_dim == 8 and meta.modalities == ["audio"]
        assert meta.n_parameters == encoder.model.num_parameters()
        other = MTSLVREncoder(str(folder), device="cpu", tasks=("predictive",))
        assert other.mteb_model_meta.embed_dim == 4 and other.mteb_model_meta.revision == meta.revision
        other.model.heads["predictive"].bias.data += 1
        other._meta = None
        assert other.mteb_model_meta.revision != meta.revision  # or mteb would return the other weights' results

    def test_another_pooling_of_the_same_weights_has_another_revision(self, mteb, folder, tmp_path):
        metas = []
        for bands in (2, 4):
            AutoModel.from_pretrained(folder, pooling="bands", num_bands=bands).save_pretrained(tmp_path / "tiny")
            AutoFeatureExtractor.from_pretrained(folder).save_pretrained(tmp_path / "tiny")
            metas.append(MTSLVREncoder(str(tmp_path / "tiny"), device="cpu").mteb_model_meta)
        assert [meta.embed_dim for meta in metas] == [128, 256]
        assert metas[0].name == metas[1].name and metas[0].revision != metas[1].revision

    def test_classification(self, mteb, encoder, task):
        from mteb.abstasks import AbsTaskClassification

        classification = task(AbsTaskClassification, "AudioClassification", "accuracy")
        result = mteb.evaluate(encoder, classification, cache=None, show_progress_bar=False)
        assert result.task_results[0].get_score() > 0.8

    def test_a_sentence_transformer_gives_the_same(self, mteb, folder, encoder, dataset, task):
        from mteb.abstasks import AbsTaskClassification
        from mteb.models import SentenceTransformerEncoderWrapper
        from sentence_transformers import SentenceTransformer

        decoded = []  # at the model's rate, and without torchcodec
        for row in dataset.cast_column("audio", Audio(decode=False)):
            samples = soundfile.read(io.BytesIO(row["audio"]["bytes"]))[0]
            decoded.append({"audio": {"array": samples, "sampling_rate": 16_000}, "label": row["label"]})
        decoded = Dataset.from_list(decoded)
        transformer = SentenceTransformerEncoderWrapper(SentenceTransformer(str(folder), device="cpu"))
        changes = {"name": "local/tiny", "modalities": ["audio"]}
        transformer.mteb_model_meta = transformer.mteb_model_meta.model_copy(update=changes)
        embeddings, scores = [], []
        for each in (encoder, transformer):
            classification = task(AbsTaskClassification, "AudioClassification", "accuracy", decoded)
            result = mteb.evaluate(each, classification, cache=None, show_progress_bar=False)
            scores.append(result.task_results[0].get_score())
            loader = DataLoader(decoded, batch_size=5, collate_fn=columns)
            options = {"task_metadata": classification.metadata, "hf_split": "test", "hf_subset": "default"}
            embeddings.append(each.encode(loader, **options))
        np.testing.assert_allclose(*embeddings, rtol=1e-5, atol=1e-5 * np.abs(embeddings[0]).max())
        assert scores[0] == pytest.approx(scores[1]) and scores[0] > 0.8

    def test_metadata_of_the_card(self, mteb, folder, tmp_path):
        AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "model")
        AutoFeatureExtractor.from_pretrained(folder).save_pretrained(tmp_path / "model")
        card = (
            "---\nlicense: cc-by-sa-4.0\ndatasets:\n- agkphysics/AudioSet\nbase_model: tester/base\n---\n\n# A model\n"
        )
        (tmp_path / "model" / "README.md").write_text(card)
        meta = MTSLVREncoder(str(tmp_path / "model"), device="cpu").mteb_model_meta
        assert meta.license == "cc-by-sa-4.0" and meta.adapted_from == "tester/base"
        assert meta.public_training_data == "https://huggingface.co/datasets/agkphysics/AudioSet"
        assert "AudioSet" in meta.training_datasets
        (tmp_path / "model" / "README.md").write_text(card.replace("cc-by-sa-4.0", "my-own"))
        assert MTSLVREncoder(str(tmp_path / "model"), device="cpu").mteb_model_meta.license is None

    def test_clustering(self, mteb, encoder, task):
        from mteb.abstasks import AbsTaskClustering

        clustering = task(AbsTaskClustering, "AudioClustering", "v_measure")
        clustering.max_fraction_of_documents_to_embed = None
        result = mteb.evaluate(encoder, clustering, cache=None, show_progress_bar=False)
        assert result.task_results[0].get_score() > 0.5
