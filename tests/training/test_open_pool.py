"""Pool of openly licensed audio, from unpacked packages that the tests make."""

import csv
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from audio_files import encode, noise
from interrupted_runs import Interrupted, contents

from mtslvr_hf.data import load_audio

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
import debian_packages
import open_pool
from audio_licenses import LeftOutError, PackageEntry, PackageLicenses, Rule, choose_license, read_table
from debian_packages import UnpackedPackage

TABLE = read_table(open_pool.TABLE)
SOUNDS = "usr/share/games/bells/"
STANZAS = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Source: the site <https://bells.example/>, and a tape

Files: *
Copyright: 2001-2004, A. Bell <a@bells.example>
License: GPL-2+

Files: data/*
Copyright: (c) 2005 B. Bell
           2006, 2007 C. Bell
License: CC-BY-SA-3.0

Files: data/music/*.wav data/odd*
Copyright: 2008 D. Bell
License: GPL-2+ or Expat

Files: data/music/sold.wav
Copyright: 2009 E. Bell
License: CC-BY-NC-3.0
"""
HANDWRITTEN = "These sounds were recorded by F. Bell\nand are in the   public domain.\n"


def write_package(root, name="bells", copyright=STANZAS, files=None, archives=None):
    """Unpacked package: `files` and the members of `archives` are encoded audio by path below `SOUNDS`."""
    folder = root / name
    texts = folder / "usr/share/doc" / name
    texts.mkdir(parents=True)
    (texts / "copyright").write_text(copyright)
    for path, data in (files or {}).items():
        file = folder / SOUNDS / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    for path, members in (archives or {}).items():
        (folder / SOUNDS).mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / SOUNDS / path, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
    return UnpackedPackage(name, "1.0-1", folder)


def wav(seed=0, seconds=0.5, rate=16_000):
    return encode(noise(seconds, rate, seed=seed), rate, "WAV", "PCM_16")


def licenses(package, **fields):
    return PackageLicenses(package, PackageEntry("bells", {SOUNDS: "data/"}, **fields), TABLE.licenses)


def write_table(folder, entries):
    path = folder / "table.yaml"
    content = yaml.safe_load(open_pool.TABLE.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**content, "packages": entries}))
    return path


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """Function that builds a pool of the packages below `packages` and returns the rows of its manifest."""
    unpacked = []

    @contextmanager
    def already_unpacked(name, downloads, scratch):
        unpacked.append(name)
        yield UnpackedPackage(name, "1.0-1", tmp_path / "packages" / name)

    monkeypatch.setattr(open_pool, "unpacked_package", already_unpacked)
    monkeypatch.setattr(open_pool, "check_available", lambda names, downloads: None)

    def build(*options, output="pool", entry=None):
        entry = entry or {"folders": {SOUNDS: "data/"}}
        names = sorted(path.name for path in (tmp_path / "packages").iterdir())
        table = write_table(tmp_path, dict.fromkeys(names, entry))
        open_pool.main(["--output", str(tmp_path / output), "--table", str(table), *options])
        with open(tmp_path / output / "manifest.csv", newline="") as file:
            return list(csv.DictReader(file))

    build.unpacked = unpacked
    return build


def test_the_last_matching_stanza_states_the_terms(tmp_path):
    found = licenses(write_package(tmp_path))
    assert found.terms(SOUNDS + "ding.wav") == ("CC-BY-SA-3.0", "B. Bell; C. Bell")
    assert found.terms(SOUNDS + "music/deep/song.wav") == ("MIT", "D. Bell")
    assert found.terms(SOUNDS + "odd.ogg") == ("MIT", "D. Bell")
    assert found.terms("usr/share/other/ding.wav") is None
    assert found.homepage == "https://bells.example/"
    with pytest.raises(LeftOutError, match=r"^license CC-BY-NC-3\.0$"):
        found.terms(SOUNDS + "music/sold.wav")
    with pytest.raises(LeftOutError, match=r"^license GPL-2\+$"):
        PackageLicenses(
            UnpackedPackage("bells", "1", tmp_path / "bells"), PackageEntry("bells", {SOUNDS: ""}), TABLE.licenses
        ).terms(SOUNDS + "ding.wav")


@pytest.mark.parametrize(
    ("synopsis", "license"),
    [
        ("CC0", "CC0-1.0"),
        ("cc-by-sa-3.0", "CC-BY-SA-3.0"),
        ("GPL-2+ or CC-BY-SA-3.0", "CC-BY-SA-3.0"),
        ("GPL-2+ OR CC-BY-SA-3.0", "CC-BY-SA-3.0"),
        ("GPL-2+ and CC-BY-SA-3.0", None),
        ("GPL-2+ and MIT or CC0-1.0", "CC0-1.0"),
        ("GPL-2+ or MIT, and CC0-1.0", "MIT and CC0-1.0"),
        ("GPL-2+ or MIT, and GPL-3", None),
        ("CC-BY-3.0 and Expat", "CC-BY-3.0 and MIT"),
        ("CC-BY-NC-3.0", None),
        ("CC-BY-ND-4.0", None),
        ("CC-BY-NC-SA-4.0", None),
        ("GPL-3+", None),
        ("LGPL-3", None),
        ("permissive", None),
        ("CC-BY-SA-3.0 with a restriction", None),
    ],
)
def test_license_expressions(synopsis, license):
    assert choose_license(synopsis, TABLE.licenses) == license


def test_rules_of_the_table_go_before_the_copyright_file(tmp_path):
    rules = [
        Rule(["data/*"], authors="the Bells"),
        Rule(["data/music/sold.wav"], license="CC0", quote="Source: the site", authors="E."),
        Rule(["data/ba*"], leave_out="of another package"),
    ]
    found = licenses(write_package(tmp_path), rules=rules)
    assert found.terms(SOUNDS + "ding.wav") == ("CC-BY-SA-3.0", "the Bells")
    assert found.terms(SOUNDS + "music/sold.wav") == ("CC0-1.0", "E.")
    with pytest.raises(LeftOutError, match=r"^of another package$"):
        found.terms(SOUNDS + "bang.wav")


def test_a_package_without_stanzas_needs_rules_that_quote_its_text(tmp_path):
    package = write_package(tmp_path, copyright=HANDWRITTEN)
    with pytest.raises(LeftOutError, match="license or authors not stated"):
        licenses(package).terms(SOUNDS + "ding.wav")
    rule = Rule(["*"], license="public-domain", authors="F. Bell", quote="and are in the public domain.")
    assert licenses(package, rules=[rule]).terms(SOUNDS + "ding.wav") == ("public-domain", "F. Bell")
    with pytest.raises(SystemExit, match=r"bells 1\.0-1: the copyright file does not say 'and are MIT' about \*"):
        licenses(package, rules=[Rule(["*"], license="MIT", authors="F. Bell", quote="and are MIT")])


def test_a_rule_quotes_another_text_of_the_package(tmp_path):
    package = write_package(tmp_path, files={"credits.txt": b"All by F. Bell, CC0."})
    rule = Rule(["*"], license="CC0", authors="F. Bell", quote="All by F. Bell", text=SOUNDS + "credits.txt")
    assert licenses(package, rules=[rule]).terms(SOUNDS + "ding.wav").license == "CC0-1.0"
    with pytest.raises(SystemExit, match=r"bells 1\.0-1 has no readable file nowhere\.txt"):
        licenses(package, rules=[Rule(["*"], quote="All", text="nowhere.txt")])


def test_files_with_other_licenses_and_unusable_files_are_left_out(tmp_path, pool, capsys):
    files = {
        "ding.wav": wav(1),
        "music/sold.wav": wav(2),
        "music/song.wav": wav(3, 1.0, 22_050),
        "broken.ogg": b"no audio",
        "short.wav": wav(4, 0.25),
        "silent.wav": encode(np.zeros(16_000, np.float32), format="WAV"),
        "picture.png": wav(5),
        "notes": b"no audio",
        "bell": encode(noise(0.5, seed=7)),  # FLAC, without a suffix
    }
    write_package(tmp_path / "packages", files=files, archives={"more.pk3": {"a/dong.wav": wav(6)}})
    rows = pool()
    sources = [row["source"].removeprefix(SOUNDS) for row in rows]
    assert sources == ["bell", "ding.wav", "more.pk3/a/dong.wav", "music/song.wav"]
    assert rows[3] == {
        "file": "bells/00003_song.flac",
        "package": "bells",
        "version": "1.0-1",
        "source": SOUNDS + "music/song.wav",
        "start_seconds": "0.00",
        "seconds": "1.00",
        "original_rate": "22050",
        "license": "MIT",
        "authors": "D. Bell",
        "homepage": "https://bells.example/",
        "sha256": rows[3]["sha256"],
    }
    printed = capsys.readouterr().out
    for line in ("license CC-BY-NC-3.0: 1", "unreadable: 1", "shorter than 0.3 s: 2"):
        assert f"left out, {line}\n" in printed
    assert "4 clips, 0.00 hours, 1 packages" in printed


def test_clips_are_mono_16_khz_flac_of_ten_seconds(tmp_path, pool):
    samples = noise(24.5, 8_000, channels=2)
    samples[: 8_000 * 2] = 0  # two seconds of silence
    samples[:-4_000] *= 0.5
    files = {"long.wav": encode(samples, 8_000, "WAV", "FLOAT"), "short.wav": wav(1)}
    write_package(tmp_path / "packages", files=files)
    rows = pool()
    assert [float(row["start_seconds"]) for row in rows] == pytest.approx([2, 12, 22, 0], abs=0.02)
    assert [float(row["seconds"]) for row in rows] == pytest.approx([10, 10, 2.5, 0.5], abs=0.02)
    levels = []
    for row in rows:
        info = soundfile.info(tmp_path / "pool" / row["file"])
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")
        levels.append(np.abs(soundfile.read(tmp_path / "pool" / row["file"])[0]).max())
    assert max(levels[:3]) == pytest.approx(0.9, abs=1e-3) == levels[3]  # of each file
    assert levels[0] < 0.7
    assert len(load_audio(str(tmp_path / "pool"), streaming=False)) == 4


def test_the_same_sound_is_taken_once(tmp_path, pool):
    write_package(tmp_path / "packages", "a-bells", files={"ding.wav": wav(1), "copy.wav": wav(1)})
    write_package(tmp_path / "packages", "b-bells", files={"renamed.wav": wav(1), "dong.wav": wav(2)})
    assert [row["source"].removeprefix(SOUNDS) for row in pool()] == ["copy.wav", "dong.wav"]
    shutil.rmtree(tmp_path / "pool/a-bells")  # and is not taken from the later package when the first is built again
    assert [row["source"].removeprefix(SOUNDS) for row in pool()] == ["copy.wav", "dong.wav"]


def test_a_package_has_at_most_the_hours_of_the_option(tmp_path, pool):
    files = {"long.wav": wav(0, 95), **{f"{number}.wav": wav(number, 1.0) for number in range(1, 40)}}
    write_package(tmp_path / "packages", files=files)
    assert sum(float(row["seconds"]) for row in pool()) == pytest.approx(134, abs=0.1)
    rows = pool("--hours-per-package", "0.01", output="capped")
    assert 26 < sum(float(row["seconds"]) for row in rows) <= 36
    assert {row["sha256"] for row in rows} < {row["sha256"] for row in pool()}
    assert rows == pool("--hours-per-package", "0.01", output="again")


def test_an_interrupted_run_goes_on(tmp_path, pool, monkeypatch):
    for letter, seed in (("a", 1), ("b", 2)):
        files = {"ding.wav": wav(seed), "dong.wav": wav(3)}
        write_package(tmp_path / "packages", f"{letter}-bells", files=files)
    pool(output="whole")
    write, left = soundfile.write, [2]

    def write_or_stop(*arguments, **options):
        if not left[0]:
            raise Interrupted
        left[0] -= 1
        write(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(soundfile, "write", write_or_stop)
        with pytest.raises(Interrupted):
            pool()
    assert sorted(path.name for path in (tmp_path / "pool").iterdir()) == ["a-bells", "settings.json"]
    killed = tmp_path / "pool" / ".b-bells.0123.tmp"  # is left by a killed run
    killed.mkdir()
    (killed / "half.flac").write_bytes(b"f")
    pool.unpacked.clear()
    pool()
    assert pool.unpacked == ["b-bells"]
    assert contents(tmp_path / "pool") == contents(tmp_path / "whole")


def test_a_folder_of_another_pool_is_kept(tmp_path, pool):
    write_package(tmp_path / "packages", files={"ding.wav": wav(1)})
    pool()
    before = contents(tmp_path / "pool")
    with pytest.raises(SystemExit, match=r"other settings: hours_per_package \(2\.0, now 1\.0\)\. Choose another"):
        pool("--hours-per-package", "1")
    with pytest.raises(SystemExit, match="other settings: table_sha256"):
        pool(entry={"folders": {SOUNDS: ""}})
    assert contents(tmp_path / "pool") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/note.txt").write_text("mine")
    with pytest.raises(SystemExit, match="mine exists and holds no pool"):
        pool(output="mine")


def test_the_attribution_names_packages_licenses_and_authors(tmp_path, pool):
    files = {"ding.wav": wav(1, 30), "dong.wav": wav(2, 30), "music/song.wav": wav(3, 60)}
    write_package(tmp_path / "packages", files=files)
    silent = {
        "rules": [{"files": ["*"], "license": "public-domain", "authors": "F. Bell"}],
        "folders": {SOUNDS: "data/"},
    }
    write_package(tmp_path / "packages", "handbells", HANDWRITTEN, {"ring.wav": wav(4, 3)})
    pool(entry=silent)
    pool_of_stanzas = pool("--packages", "bells", output="stanzas")
    text = (tmp_path / "stanzas/ATTRIBUTION.md").read_text()
    assert "12 clips, 0.0 hours, from 1 packages of Debian." in text
    assert "## bells 1.0-1\n\n<https://bells.example/>. The package states its terms in" in text
    assert "`/usr/share/doc/bells/copyright`" in text
    assert (
        "- CC-BY-SA-3.0, by B. Bell; C. Bell: files 2, minutes 1.0\n- MIT, by D. Bell: files 1, minutes 1.0\n" in text
    )
    assert "- CC-BY-SA-3.0: <https://creativecommons.org/licenses/by-sa/3.0/>\n- MIT: <https" in text
    assert text == open_pool.attribution(pool_of_stanzas, TABLE)
    assert (tmp_path / "stanzas/bells/copyright").read_text() == STANZAS
    text = (tmp_path / "pool/ATTRIBUTION.md").read_text()
    assert "## handbells 1.0-1\n\nThe package states its terms in" in text
    assert "- public-domain, by F. Bell: files 1, minutes 0.1\n" in text


def test_packages_of_evaluation_sets_are_refused_by_name(tmp_path):
    assert {"bzflag-data", "gcompris-qt-data", "wesnoth-1.16-data", "hydrogen-drumkits"} < TABLE.refused.keys()
    assert not TABLE.refused.keys() & TABLE.packages.keys()
    with pytest.raises(SystemExit, match=r"klettres-data is refused: .*evaluation"):
        open_pool.main(["--output", str(tmp_path / "pool"), "--packages", "klettres-data"])
    with pytest.raises(SystemExit, match=r"klettres-data is refused .* cannot be among the packages"):
        read_table(write_table(tmp_path, {"klettres-data": {"folders": {SOUNDS: ""}}}))
    assert not (tmp_path / "pool").exists()


def test_unknown_packages_and_fields(tmp_path):
    with pytest.raises(SystemExit, match=r"nobells is not in the table\. It has .*yaru-theme-sound"):
        open_pool.main(["--output", str(tmp_path / "pool"), "--packages", "nobells"])
    with pytest.raises(SystemExit, match=r"an entry of `packages` is wrong: .*'folder'"):
        read_table(write_table(tmp_path, {"bells": {"folder": {SOUNDS: ""}}}))


def programs(folder, monkeypatch, **scripts):
    """Puts shell scripts in the place of programs."""
    folder.mkdir()
    for name, script in scripts.items():
        file = folder / name.replace("_", "-")
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin" if scripts else str(folder))


def test_a_machine_without_apt(tmp_path, monkeypatch):
    programs(tmp_path / "bin", monkeypatch)
    with pytest.raises(SystemExit, match="no apt-get and no dpkg-deb on this machine"):
        open_pool.main(["--output", str(tmp_path / "pool"), "--packages", "yaru-theme-sound"])


def test_packages_that_apt_does_not_know_are_named_before_anything_is_fetched(tmp_path, monkeypatch):
    script = 'test "$1" = --print-uris || exit 9\necho "E: Unable to locate package yaru-theme-sound" >&2\nexit 100'
    programs(tmp_path / "bin", monkeypatch, apt_get=script, dpkg_deb="exit 9")
    with pytest.raises(SystemExit, match=r"apt does not have yaru-theme-sound\. .*bookworm"):
        open_pool.main(["--output", str(tmp_path / "pool"), "--packages", "yaru-theme-sound"])


def test_a_download_that_fails_leaves_nothing(tmp_path, monkeypatch):
    script = 'test "$1" = --print-uris && exit 0\necho half > bells_1.0_all.deb\necho "E: no network" >&2\nexit 100'
    programs(tmp_path / "bin", monkeypatch, apt_get=script, dpkg_deb="exit 9")
    debian_packages.check_available(["bells"], tmp_path / "debs")
    with pytest.raises(SystemExit, match="bells cannot be downloaded: E: no network"):
        debian_packages.unpacked_package("bells", tmp_path / "debs", tmp_path).__enter__()
    assert list((tmp_path / "debs").iterdir()) == []


def test_several_versions_of_a_download(tmp_path):
    for version in ("1.0", "2.0"):
        (tmp_path / f"bells_{version}_all.deb").touch()
    with pytest.raises(SystemExit, match=r"holds bells_1\.0_all\.deb, bells_2\.0_all\.deb: remove all but one"):
        debian_packages.find_download("bells", tmp_path)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_package_file_is_unpacked_and_removed_again(tmp_path):
    package = write_package(tmp_path / "packages", files={"ding.wav": wav(1)})
    (package.folder / "DEBIAN").mkdir()
    (package.folder / "DEBIAN/control").write_text(
        "Package: bells\nVersion: 4:1.0-1\nArchitecture: all\nMaintainer: A. Bell <a@b.example>\nDescription: bells\n"
    )
    downloads = tmp_path / "debs"
    downloads.mkdir()
    file = downloads / "bells_4%3a1.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--build", package.folder, file], check=True, capture_output=True)
    with debian_packages.unpacked_package("bells", downloads, tmp_path) as unpacked:
        assert (unpacked.name, unpacked.version) == ("bells", "4:1.0-1")
        assert [(found.path, found.read()) for found in unpacked.audio_files()] == [(SOUNDS + "ding.wav", wav(1))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["debs", "packages"]
    file.write_bytes(b"damaged")
    with pytest.raises(SystemExit, match=r"cannot be unpacked: .* Remove it"):
        debian_packages.unpacked_package("bells", downloads, tmp_path).__enter__()
