"""Publishing, loading by name without the package, and streaming, against a Hub on loopback.

Clients run in processes of their own: huggingface_hub reads `HF_ENDPOINT` when it is imported, and what was published
must load where `mtslvr_hf` is not installed.
"""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import hub_server as hub
import pytest
from hub_server import HubServer

hub_server = hub.hub_server  # the fixture
ROOT = Path(__file__).parent.parent
HIDE_PACKAGE = "import sys; sys.modules['mtslvr_hf'] = None  # also where it is installed\n"


def run_client(server, folder, code, *arguments, isolated=False):
    """Runs Python code as a client of the server, in `folder`; returns what it printed."""
    command = [sys.executable, *(["-I"] if isolated else []), "-c"]
    code = (HIDE_PACKAGE if isolated else "") + textwrap.dedent(code)
    path = {} if isolated else {"PYTHONPATH": str(ROOT)}
    environment = server.environment(folder / "hf_home", OMP_NUM_THREADS="1", **path)
    done = subprocess.run(
        [*command, code, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


PUBLISH = """
    import soundfile, torch
    from huggingface_hub import HfApi
    from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRForPreTraining
    from mtslvr_hf.cards.pretraining import TrainingSummary, create_model_card

    torch.manual_seed(0)
    config = MTSLVRConfig(base_width=8, window_seconds=1.0, embedding_size=32)
    model = MTSLVRForPreTraining(config)
    with torch.no_grad():  # so that BatchNorm's statistics are not those of a new model
        model.train()(torch.randn(4, 2, 16000))
    model.eval()
    extractor = MTSLVRFeatureExtractor(normalization="sample")
    for name, part in (("tester/tiny", model.mtslvr), ("tester/tiny-pretraining", model)):
        part.push_to_hub(name)
        extractor.push_to_hub(name)
        card = create_model_card(config, TrainingSummary(steps=1, batch_size=4), repo_id=name)
        # Not card.push_to_hub: before huggingface_hub 2 it asks huggingface.co, whatever the endpoint.
        HfApi().upload_file(repo_id=name, path_or_fileobj=str(card).encode(), path_in_repo="README.md")
    HfApi().create_repo("Narsil/asr_dummy", repo_type="dataset")  # the sound of the cards' examples
    soundfile.write("mlk.flac", torch.randn(30000).numpy() / 10, 22050)
    HfApi().upload_file(
        repo_id="Narsil/asr_dummy", repo_type="dataset", path_or_fileobj="mlk.flac", path_in_repo="mlk.flac"
    )
    clips = [torch.randn(20000), torch.randn(30000)]
    inputs = extractor(clips, sampling_rate=22050, return_tensors="pt")
    with torch.no_grad():
        outputs = model.mtslvr(**inputs)
        logits = model(inputs["input_values"]).augmentation_logits
    encoded = model.encode(clips, 22050, feature_extractor=extractor, convert_to="torch", tasks="contrastive")
    expected = {"clips": clips, "pooled": outputs.pooler_output, "frames": outputs.last_hidden_state}
    torch.save({**expected, "logits": logits, "encoded": encoded}, "expected.pt")
"""

LOAD = """
    import soundfile, torch
    from transformers import (
        AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, AutoModelForPreTraining, AutoProcessor,
        pipeline,
    )

    expected = torch.load(sys.argv[1], weights_only=True)
    for name in ("tester/tiny", "tester/tiny-pretraining"):
        extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=True)
        model, info = AutoModel.from_pretrained(name, trust_remote_code=True, output_loading_info=True)
        assert type(model).__name__ == "MTSLVRModel" and type(model).__module__.startswith("transformers_modules.")
        assert not info["missing_keys"] and not info["mismatched_keys"], info
        inputs = extractor(expected["clips"], sampling_rate=22050, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        assert torch.equal(outputs.pooler_output, expected["pooled"]), name
        assert torch.equal(outputs.last_hidden_state, expected["frames"]), name
        options = {"rtol": 1e-4, "atol": 1e-5}
        encoded = model.encode(expected["clips"], 22050, tasks="contrastive", convert_to="torch", batch_size=1)
        torch.testing.assert_close(encoded, expected["encoded"], **options)
        soundfile.write("clip.wav", expected["clips"][0].numpy(), 22050, subtype="FLOAT")
        of_file = torch.from_numpy(model.encode("clip.wav", tasks="contrastive"))
        torch.testing.assert_close(of_file, expected["encoded"][0], **options)
        stereo = {"array": expected["clips"][0].repeat(2, 1), "sampling_rate": 22050}
        of_stereo = torch.from_numpy(model.encode([stereo], tasks="contrastive"))
        torch.testing.assert_close(of_stereo, of_file[None], **options)
        embed = pipeline("feature-extraction", name, trust_remote_code=True, device="cpu")
        for clip in ("clip.wav", stereo):
            torch.testing.assert_close(torch.tensor(embed(clip, tasks="contrastive")), of_file, **options)
        assert type(AutoProcessor.from_pretrained(name, trust_remote_code=True)) is type(extractor)
    bands, info = AutoModel.from_pretrained(name, trust_remote_code=True, pooling="bands", output_loading_info=True)
    assert not any(info.values()) and type(bands).__module__.startswith("transformers_modules."), info
    with torch.no_grad():
        outputs = bands(**inputs)  # the mean of equal bands is the mean that the heads were trained on
        mean = outputs.contrastive_embeds.view(2, 4, 64).mean(1)
        assert torch.allclose(model.heads.contrastive(mean), model(**inputs).contrastive_embeds, rtol=1e-4, atol=1e-5)
    try:
        AutoModelForPreTraining.from_pretrained(name, trust_remote_code=True, pooling="bands")
    except ValueError as error:
        assert "trained on another embedding" in str(error)
    else:
        raise AssertionError("projectors of another embedding")
    whole, info = AutoModelForPreTraining.from_pretrained(name, trust_remote_code=True, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        logits = whole(inputs["input_values"]).augmentation_logits
    assert torch.equal(logits, expected["logits"])
    classifier = AutoModelForAudioClassification.from_pretrained(name, trust_remote_code=True, num_labels=3)
    assert classifier(**inputs).logits.shape == (2, 3)
    assert torch.equal(classifier.mtslvr.heads.contrastive.weight, whole.mtslvr.heads.contrastive.weight)
    views, labels = torch.randn(2, 2, 16000), torch.ones(2, len(whole.config.augmentations))
    whole.train()(views, augmentation_labels=labels).loss.backward()  # the losses travel with the model
    assert all(parameter.grad is not None for parameter in whole.parameters())
    model.add_adapter("birds")  # what needs no more than the model's own code works without the package
    model.merge_adapters("birds")
    assert model(**inputs).pooler_output.shape == (2, 16)
    for option in ({"return_timestamps": True}, {"compile": True}, {"on_error": "skip"}):
        try:
            model.encode(expected["clips"], 22050, **option)
        except ImportError as error:
            assert "pip install -e ." in str(error)
        else:
            raise AssertionError(f"{option} without the package")
    exec(sys.argv[2], {})
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A Hub on which one process has published a tiny model, and the outputs it had there."""
    folder = tmp_path_factory.mktemp("publisher")
    with HubServer() as server:
        run_client(server, folder, PUBLISH)
        yield server, folder / "expected.pt"


@pytest.mark.parametrize("name", ["tester/tiny", "tester/tiny-pretraining"])
def test_what_is_published_is_complete(published, name):
    server, _ = published
    files = server.files(name)
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= files.keys()
    code = {path for path in files if path.endswith(".py")}
    parts = ("configuration", "feature_extraction", "losses", "modeling", "pipeline")
    assert code == {f"{part}_mtslvr.py" for part in parts}
    config = json.loads(files["config.json"])
    classes = {"AutoModel", "AutoModelForPreTraining", "AutoModelForAudioClassification"}
    assert {"AutoConfig", *classes} <= config["auto_map"].keys()
    assert b"library_name: transformers" in files["README.md"]
    assert not any(path.endswith((".bin", ".pt", ".pkl")) for path in files)


def example(server):
    """The published card's code, and the lines it says it prints."""
    card = server.files("tester/tiny-pretraining")["README.md"].decode()
    code = "".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    return code, re.findall(r"print\(.*?\)  # (.*)", code)


def test_published_models_load_by_name_without_the_package(published, tmp_path):
    server, expected = published
    code, lines = example(server)
    assert lines[:3] == ["(32,)", "(16,)", "(16,)"] and len(lines) == 6
    assert run_client(server, tmp_path, LOAD, expected, code, isolated=True).splitlines() == lines


def test_published_models_load_by_name_with_the_package(published, tmp_path):
    server, _ = published
    code, lines = example(server)
    code = "import mtslvr_hf\n" + code.replace(", trust_remote_code=True", "")
    assert run_client(server, tmp_path, code).splitlines() == lines


CLIENT = """
    import sys
    from pathlib import Path
    from huggingface_hub import HfApi, errors, snapshot_download

    api, folder = HfApi(), Path("uploaded")
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "empty.txt").write_text("")
    (folder / "sub" / "weights.safetensors").write_bytes(bytes(range(256)) * 5000)
    assert api.whoami()["name"] == "tester"
    api.create_repo("tester/files", private=True)
    api.create_repo("tester/files", exist_ok=True)
    first = api.upload_folder(repo_id="tester/files", folder_path=folder, commit_message="one")
    api.upload_file(repo_id="tester/files", path_or_fileobj=b"more", path_in_repo="sub/more.txt", commit_message="two")
    api.delete_file("config.json", "tester/files", commit_message="three")
    assert [commit.title for commit in api.list_repo_commits("tester/files")] == [
        "three", "two", "one", "initial commit"]
    now = Path(snapshot_download("tester/files"))
    assert sorted(path.name for path in now.rglob("*") if path.is_file()) == [
        "empty.txt", "more.txt", "weights.safetensors"]
    for name in ("empty.txt", "sub/weights.safetensors"):
        assert (now / name).read_bytes() == (folder / name).read_bytes()
    before = Path(snapshot_download("tester/files", revision=first.oid))
    assert (before / "config.json").read_text() == "{}" and not (before / "sub" / "more.txt").exists()
    assert api.list_repo_refs("tester/files").branches[0].name == "main"
    api.create_branch("tester/files", branch="next")
    api.delete_folder("sub", "tester/files", revision="next")
    assert api.list_repo_files("tester/files", revision="next") == ["empty.txt"]
    assert len(api.get_paths_info("tester/files", ["sub/more.txt", "empty.txt", "absent"])) == 2
    failures = {
        errors.RepositoryNotFoundError: lambda: api.model_info("tester/absent"),
        errors.RevisionNotFoundError: lambda: api.model_info("tester/files", revision="absent"),
        errors.EntryNotFoundError: lambda: api.hf_hub_download("tester/files", "absent"),
    }
    failures[errors.HfHubHTTPError] = lambda: HfApi(token="hf_wrong").create_repo("tester/forbidden")
    for kind, call in failures.items():
        try:
            call()
        except kind:
            continue
        raise AssertionError(kind)
    try:
        HfApi(token=False).model_info("tester/files")
    except errors.RepositoryNotFoundError:
        print("done")
"""


def test_the_server_itself(hub_server, tmp_path):
    assert run_client(hub_server, tmp_path, CLIENT, isolated=True) == "done\n"
    assert ("PUT", "/lfs/" + next(iter(hub_server.lfs)), None) in hub_server.requests
    assert list(hub_server.repositories) == [("models", "tester/files")]


STREAM = """
    from pathlib import Path
    import pyarrow as pa, pyarrow.parquet as pq
    from datasets import Audio, load_dataset
    from huggingface_hub import HfApi
    from mtslvr_hf.data import load_audio

    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    card = ["---", "configs:", "- config_name: balanced", "  data_files:", "  - split: train"]
    Path("data").mkdir()
    Path("data/README.md").write_text("\\n".join([*card, "    path: train-*.parquet", "---", ""]))
    for shard in range(2):
        rows = [{"bytes": bytes([shard, row]) * 100_000, "path": f"{shard}-{row}.flac"} for row in range(8)]
        table = pa.table({"audio": pa.array(rows, audio), "labels": [[str(row % 2)] for row in range(8)]})
        pq.write_table(table, f"data/train-{shard:05d}-of-00002.parquet", row_group_size=2, compression="none")
    api = HfApi()
    api.create_repo("tester/sounds", repo_type="dataset")
    api.upload_folder(repo_id="tester/sounds", repo_type="dataset", folder_path="data")

    stream = load_dataset("tester/sounds", "balanced", split="train", streaming=True)
    rows = list(stream.cast_column("audio", Audio(decode=False)))
    assert [row["audio"]["path"] for row in rows] == [f"{shard}-{row}.flac" for shard in range(2) for row in range(8)]
    assert all(row["audio"]["bytes"] == bytes([n // 8, n % 8]) * 100_000 for n, row in enumerate(rows))
    assert rows[3]["labels"] == ["1"]

    assert list(load_audio("tester/sounds", "balanced")) == [{"audio": row["audio"]} for row in rows]
    assert len(load_audio("tester/sounds", "balanced", streaming=False)) == 16
    for kind, wrong in ((FileNotFoundError, ["tester/absent"]), (ValueError, ["tester/sounds", "unbalanced"])):
        try:
            load_audio(*wrong)
        except kind:
            continue
        raise AssertionError(wrong)
"""


def test_a_data_set_is_published_and_streams(hub_server, tmp_path):
    run_client(hub_server, tmp_path, STREAM)
    ranges = {path.split("/")[-1] for _, path, wanted in hub_server.requests if wanted}
    assert ranges == {f"train-{shard:05d}-of-00002.parquet" for shard in range(2)}


ADAPTER = """
    import numpy as np, torch
    from huggingface_hub import HfApi
    from transformers import AutoModel
    from mtslvr_hf import MTSLVRConfig, MTSLVRFeatureExtractor, MTSLVRModel

    torch.manual_seed(0)
    model = MTSLVRModel(MTSLVRConfig(base_width=4, window_seconds=1.0, embedding_size=8)).eval()
    audio = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    model.add_adapter("birds", "bn")
    with torch.no_grad():
        model.heads["birds"].weight.add_(1.0)
    api = HfApi()
    api.create_repo("tester/birds")
    model.save_adapter("adapter", "birds")
    api.upload_folder(repo_id="tester/birds", folder_path="adapter")
    expected = model.encode(audio, 16_000, tasks="birds")
    model.delete_adapter("birds")
    model.push_to_hub("tester/base")
    MTSLVRFeatureExtractor(normalization="sample").push_to_hub("tester/base")
    sample = api.list_repo_commits("tester/base")[0].commit_id
    MTSLVRFeatureExtractor(normalization="global").push_to_hub("tester/base")

    loaded = AutoModel.from_pretrained("tester/base")
    assert loaded.load_adapter("tester/birds") == "birds"
    np.testing.assert_allclose(loaded.encode(audio, 16_000, tasks="birds"), expected, rtol=1e-5, atol=1e-6)
    before = AutoModel.from_pretrained("tester/base", revision=sample)
    wanted = before.encode(audio, 16_000, feature_extractor=MTSLVRFeatureExtractor(normalization="sample"))
    np.testing.assert_array_equal(before.encode(audio, 16_000), wanted)
    assert np.abs(loaded.encode(audio, 16_000) - wanted).max() > 1e-3
    try:
        loaded.load_adapter("tester/base")
    except OSError:
        print("done")
"""


def test_adapters_from_the_hub_and_the_revisions_own_extractor(hub_server, tmp_path):
    assert run_client(hub_server, tmp_path, ADAPTER).splitlines()[-1] == "done"
    assert "adapter.safetensors" in hub_server.files("tester/birds")
