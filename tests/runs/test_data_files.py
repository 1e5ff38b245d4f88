"""Files of a run's data: their fingerprint, and decoders that are missing."""

import pytest

from mtslvr_hf.runs import data_files
from mtslvr_hf.runs.data_files import check_decoders, data_fingerprint, local_files


def test_a_fingerprint_changes_with_the_files(tmp_path):
    folder = tmp_path / "sounds"
    (folder / "a").mkdir(parents=True)
    for name in ("a/1.wav", "2.wav"):
        (folder / name).write_bytes(b"12345678")
    seen = [data_fingerprint(str(folder))]
    assert data_fingerprint(str(folder)) == seen[0]
    (folder / "2.wav").write_bytes(b"123456789")
    seen.append(data_fingerprint(str(folder)))
    (folder / "2.wav").rename(folder / "3.wav")
    seen.append(data_fingerprint(str(folder)))
    (folder / "3.wav").unlink()
    seen.append(data_fingerprint(str(folder)))
    assert len(set(seen)) == 4
    (folder / "x.parquet").write_bytes(b"1" * 70000)
    first = data_fingerprint(str(folder))
    (folder / "x.parquet").write_bytes(b"1" * 69999 + b"2")  # another footer, the same size
    assert data_fingerprint(str(folder)) != first
    assert data_fingerprint("x", data_files=["https://host/a.parquet"]) is None
    named = data_fingerprint("x", data_files=[str(folder / "*.parquet")])
    assert named and named == data_fingerprint("x", data_files=[str(folder / "x.parquet")])


def test_a_missing_decoder_is_found_before_the_first_step(tmp_path, monkeypatch, caplog):
    for number in range(9):
        (tmp_path / f"{number}.wav").write_bytes(b"")
    (tmp_path / "a.M4A").write_bytes(b"")
    monkeypatch.setattr(data_files, "find_spec", lambda name: None)
    local = local_files(str(tmp_path))
    with pytest.raises(SystemExit, match=r"1 of 10 files in .* need torchcodec \(.*Install it, convert the files"):
        check_decoders(local, 0.05)
    check_decoders(local, 0.2)
    assert "1 of 10 files" in caplog.text and "They are skipped" in caplog.text
    monkeypatch.setattr(data_files, "find_spec", lambda name: name)
    check_decoders(local, 0.05)
    assert local_files("agkphysics/AudioSet") is None
