"""Evaluation data and the registry."""

import subprocess
import sys
import textwrap

import datasets
import numpy as np
import pytest
from hub_server import HubServer

from mtslvr_hf.data import EncodedAudio
from mtslvr_hf.evaluation import BENCHMARKS, SUITES, DataNotReachableError, open_data
from mtslvr_hf.evaluation.registry import describe_registry, expand


@pytest.fixture
def folder(sounds, tmp_path):
    """The sounds of two classes, with groups."""
    for name in ("anvil", "bell"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for clip in sorted((sounds / name).iterdir())[:3]:
            (tmp_path / "set" / name / clip.name).symlink_to(clip)
    rows = "".join(f"{name}/{clip}.flac,session {clip}\n" for name in ("anvil", "bell") for clip in range(3))
    (tmp_path / "set" / "manifest.csv").write_text("file,group\n" + rows)
    return tmp_path / "set"


def write_table(path, sounds, **columns):
    """A parquet file of as many clips as the columns have rows."""
    rows = len(next(iter(columns.values())))
    clips = sorted(sounds.rglob("*.flac"))[:rows]
    audio = [{"bytes": clip.read_bytes(), "path": clip.name} for clip in clips]
    features = datasets.Features({"audio": EncodedAudio()})
    table = datasets.Dataset.from_dict({"audio": audio}, features=features)
    for name, values in columns.items():
        table = table.add_column(name, values)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return path


def test_a_folder(folder):
    data = open_data(folder)
    assert (data.name, data.source, data.note, len(data)) == ("set", "the folder set", "", 6)
    assert (data.classes, data.multi_label, data.group_disjoint) == (["anvil", "bell"], False, False)
    assert data.label_names() == ["anvil"] * 3 + ["bell"] * 3
    assert data.groups == ["session 0", "session 1", "session 2"] * 2
    chosen = data.select([4, 0])
    assert [row["path"] for row in chosen.audio] == [str(folder / "bell/1.flac"), str(folder / "anvil/0.flac")]
    assert (chosen.label_names(), chosen.groups) == (["bell", "anvil"], ["session 1", "session 0"])
    bells = data.only_classes(["bell"])
    assert (bells.classes, bells.labels.shape, bells.groups) == (["bell"], (3, 1), data.groups[3:])
    with pytest.raises(ValueError, match="set has no class drum; it has: anvil, bell"):
        data.only_classes(["drum", "bell"])


def test_a_table_is_read_row_by_row(sounds, tmp_path):
    path = write_table(tmp_path / "table.parquet", sounds, kind=["a", "b", "a"], room=["x", "y", "y"])
    data = open_data(path, label_column="kind", group_column="room")
    assert (data.label_names(), data.groups) == (["a", "b", "a"], ["x", "y", "y"])
    picked = data.select([2, 1])
    assert len(picked.audio) == 2
    assert [set(row) for row in picked.audio] == [{"bytes", "path"}] * 2
    assert picked.audio[0]["bytes"] == data.audio[2]["bytes"]
    with pytest.raises(ValueError, match="no column 'label'"):
        open_data(path)


def test_several_classes_a_clip_are_for_probes(sounds, tmp_path):
    data = open_data(write_table(tmp_path / "table.parquet", sounds, label=[["a", "b"], [], ["b"]]))
    assert data.multi_label
    assert data.labels.tolist() == [[True, True], [False, False], [False, True]]
    with pytest.raises(ValueError, match="measure a probe, or name a label column"):
        data.label_names()


def test_embeddings_that_were_made_before(tmp_path):
    rows = {"embedding": [[1.0, 2.0], [3.0, 4.0]], "label": ["b", "a"], "speaker": ["x", "y"]}
    (tmp_path / "made" / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "made/data/0.parquet")
    data = open_data(tmp_path / "made", group_column="speaker")
    assert (data.name, data.audio, data.classes) == ("made", None, ["a", "b"])
    assert (data.label_names(), data.groups) == (["b", "a"], ["x", "y"])
    assert data.select([1]).embeddings.tolist() == [[3.0, 4.0]]


def test_local_sets_of_the_registry(folder, monkeypatch):
    folder.rename(folder.parent / "drum_hits")
    for data in (open_data("drum_hits", root=folder.parent), None):
        if data is None:
            monkeypatch.setenv("MTSLVR_EVALUATION_DATA", str(folder.parent))
            data = open_data("drum_hits")
        assert (data.name, data.group_disjoint, len(data)) == ("drum_hits", True, 6)
    with pytest.raises(DataNotReachableError, match="languages: there is no folder"):
        open_data("languages")
    monkeypatch.delenv("MTSLVR_EVALUATION_DATA")
    with pytest.raises(DataNotReachableError, match="set its parent with --data-root"):
        open_data("languages")


def test_a_folder_comes_before_a_name_of_the_registry(folder, monkeypatch):
    folder.rename(folder.parent / "esc50")
    monkeypatch.chdir(folder.parent)
    assert open_data("esc50").source == "the folder esc50"
    (folder.parent / "paper").mkdir()
    assert expand(["paper", "labelled"]) == ["paper", *SUITES["labelled"]]


def test_what_nobody_has(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Names of the registry: esc50, .*paper, labelled"):
        open_data(tmp_path / "absent")


def test_registry_is_consistent():
    assert len(SUITES["paper"]) == 10  # as many as the paper evaluates on
    assert set(BENCHMARKS) == {*SUITES["paper"], *SUITES["labelled"], *SUITES["content"]}
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert name in describe_registry()
        assert benchmark.clips
        if name in SUITES["paper"]:
            assert benchmark.repository and len(benchmark.revision) == 40
            assert benchmark.audio_column and benchmark.label_column and benchmark.note


SUITE = """
    import dataclasses
    import sys

    from huggingface_hub import HfApi

    from mtslvr_hf.evaluation import BENCHMARKS, FewShotProtocol, evaluate

    HfApi().create_repo("mteb/esc50", repo_type="dataset")
    HfApi().upload_folder(folder_path=sys.argv[1], repo_id="mteb/esc50", repo_type="dataset")
    BENCHMARKS["esc50"] = dataclasses.replace(BENCHMARKS["esc50"], revision=None)  # the loopback Hub has its own
    report = evaluate([], ["paper"], FewShotProtocol(ways=3, queries=2, episodes=50), show_progress_bar=False)
    print([(result.data, result.clips, result.source) for result in report.results])
    print(*report.missing)
    print(report.missing["nsynth"])
"""


def test_a_suite_goes_on_without_what_cannot_be_reached(sounds, tmp_path):
    columns = {"category": [f"class {n}" for n in np.repeat(range(4), 8)], "src_file": [str(n) for n in range(32)]}
    write_table(tmp_path / "up/data/train-0.parquet", sounds, **columns)
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "home")
        command = [sys.executable, "-c", textwrap.dedent(SUITE), str(tmp_path / "up")]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "[('esc50', 32, 'mteb/esc50 (revision None, split train)')]"
    assert lines[1].split() == [name for name in SUITES["paper"] if name != "esc50"]
    assert "mteb/nsynth-mini (revision e32dfe9" in lines[2] and "cannot be opened" in lines[2]
