"""Properties of folder layouts: visible files of any tree, splits by words, classes, and metadata."""

import csv
import os
import re
import tempfile
from decimal import Decimal
from pathlib import Path
from random import Random

import numpy as np
import pytest
from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS
from hypothesis import example, given
from hypothesis import strategies as st

from mtslvr_hf.data.folders import FolderLayout, choose_split, readable_name, split_of, visible_files
from mtslvr_hf.data.metadata import read_metadata

ROOT = Path("/data")
WORDS = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
words = st.sampled_from(sorted(WORDS)).flatmap(
    lambda word: st.sampled_from([word, word.capitalize(), word.upper(), f"{word}-clean", f"my_{word} 2", f"{word}01"])
)
plain = st.sampled_from(["cat", "dog", "Bär", "détail", "evaluations", "x", "trains", "a b"])
pieces = st.sampled_from([*WORDS, "TRAIN", "Dev", "ation", "s", "cat", "x", *"-._ 07"])


def split_by_tokens(name):
    """Oracle: the first word between separators that is one of `datasets`."""
    tokens = re.split(f"[{NON_WORDS_CHARS}]", name)
    return next((WORDS[token.lower()] for token in tokens if token.lower() in WORDS), None)


@given(st.lists(pieces, max_size=6).map("".join))
def test_a_split_is_a_whole_word_between_separators(name):
    assert split_of(name) == split_by_tokens(name)


@given(st.lists(words | plain, min_size=1, max_size=6, unique=True), st.data())
def test_the_folder_of_just_this_name_is_chosen_or_else_all_of_the_split(names, data):
    split = data.draw(st.sampled_from([name for name in names if split_by_tokens(name)] or ["train"]) | words)
    exact = {name for name in names if name.lower() == split.lower()}
    expected = exact or {name for name in names if split_by_tokens(name) == split_by_tokens(split)}
    if expected:
        assert choose_split(names, split, ROOT) == expected
    else:
        with pytest.raises(ValueError, match="has no split"):
            choose_split(names, split, ROOT)


def kinds_of(layout, split):
    return {(layout.class_of(file), file.name) for file in layout.files_of(split)}


@given(
    st.lists(words, min_size=2, max_size=3, unique_by=lambda name: split_by_tokens(name)),
    st.lists(plain, min_size=2, max_size=3, unique=True),
    st.sampled_from(["{split}/{kind}", "data/{split}/{kind}", "{kind}/{split}", "a/b/{split}/{kind}/more"]),
    st.randoms(),
)
def test_each_split_has_its_files_and_their_classes_wherever_its_folder_stands(splits, kinds, place, random):
    names = [f"{place.format(split=split, kind=kind)}/{n}.wav" for n, split in enumerate(splits) for kind in kinds]
    files = [ROOT / name for name in random.sample(names, len(names))]
    layout = FolderLayout(ROOT, files)
    assert layout.splits() == sorted(splits)
    for n, split in enumerate(splits):
        expected = {(kind, f"{n}.wav") for kind in kinds}
        assert kinds_of(layout, split) == kinds_of(layout, split_by_tokens(split)) == expected


@st.composite
def trees(draw):
    """Different relative paths of files, with up to three folders."""
    names = st.lists(words | plain, max_size=3).map(lambda parts: "/".join(parts))
    folders = draw(st.lists(names, min_size=1, max_size=8))
    return [f"{folder}/{n}.wav".lstrip("/") for n, folder in enumerate(folders)]


@given(trees(), st.randoms())
@example(["dev/0.wav", "validation/1.wav"], Random(0))  # two splits: each is the folder of its name
def test_every_file_of_any_tree_is_in_one_split_or_the_tree_is_refused(names, random):
    files = [ROOT / name for name in names]
    layout = FolderLayout(ROOT, files)
    try:
        splits = layout.splits()
    except ValueError as error:
        assert "folders of splits" in str(error)
        return
    found = [file for name in {name.lower() for name in splits} for file in layout.files_of(name)]
    assert sorted(found) == sorted(files if splits else [])
    if not splits:
        assert layout.files_of("train") == files
        with pytest.raises(ValueError, match="not divided into splits"):
            layout.files_of("test")
    for file in files:
        kind, parts = layout.class_of(file), file.relative_to(ROOT).parts[:-1]
        depth = 0 if layout.split_depth is None else layout.split_depth + 1
        assert kind in parts if kind is not None else len(parts) <= depth
    moved = FolderLayout(ROOT, random.sample(files, len(files)))
    assert [moved.class_of(file) for file in files] == [layout.class_of(file) for file in files]
    places = {file.relative_to(ROOT).parts[: layout.split_depth] for file in files}
    if splits and len(places) == 1:  # a folder around everything is no class
        boxed = FolderLayout(ROOT, [ROOT / "box" / name for name in names])
        assert [boxed.class_of(file) for file in boxed.files] == [layout.class_of(file) for file in files]


file_names = st.binary(min_size=1, max_size=20).map(
    lambda name: os.fsdecode(name.replace(b"/", b"").replace(b"\0", b""))
)


@given(file_names)
def test_a_name_of_any_bytes_becomes_text_that_can_be_written(name):
    text = readable_name(name)
    assert text.encode("utf-8").decode("utf-8") == text
    if all(not 0xDC80 <= ord(character) <= 0xDCFF for character in name):
        assert text == name


@st.composite
def folders_with_links(draw):
    """Folders below "in" and "out", hidden ones among them, files in them, and links from folders to folders."""
    names = st.lists(st.sampled_from(["a", "b", "c", ".h"]), max_size=3)
    folders = {"in", "out", *(f"{draw(st.sampled_from(['in', 'out']))}/" + "/".join(draw(names)) for _ in range(6))}
    folders = sorted(folder.rstrip("/") for folder in folders)
    places = st.sampled_from(folders)
    files = draw(st.lists(st.tuples(places, st.sampled_from(["0.wav", "1.wav", ".2.wav"])), max_size=8))
    links = draw(
        st.lists(st.tuples(places, st.sampled_from(["l", "m"]), places), max_size=5, unique_by=lambda x: x[:2])
    )
    return folders, files, links


def reachable(root):
    """Oracle: real folders that can be reached from a folder through visible names, and the files in them."""
    pending, seen, files = [root], set(), set()
    while pending:
        here = Path(os.path.realpath(pending.pop()))
        if here in seen:
            continue
        seen.add(here)
        for path in here.iterdir():
            if not path.name.startswith("."):
                (files.add(path) if path.is_file() else pending.append(path))
    return files


@given(folders_with_links())
@example((["in", "in/a", "in/a/b", "out"], [("in/a/b", "0.wav")], [("in", "l", "in/a/b")]))
def test_each_visible_file_is_found_once_over_all_links_and_loops(tree):
    folders, files, links = tree
    with tempfile.TemporaryDirectory() as base:
        root = Path(os.path.realpath(base))
        for folder in folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
        for folder, name in files:
            (root / folder / name).touch()
        for folder, name, target in links:
            (root / folder / name).symlink_to(root / target)
        found = visible_files(root / "in")
        assert found == sorted(found)
        assert sorted(map(os.path.realpath, found)) == sorted(map(str, reachable(root / "in")))
        direct = {path for path in reachable(root / "in") if path.is_relative_to(root / "in")}
        shown = {path for path in direct if not any(part.startswith(".") for part in path.relative_to(root).parts)}
        assert shown <= set(found)  # each at its real place


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
values = (
    texts | st.integers(-(10**6), 10**6).map(str) | st.sampled_from(["007", "1.5", "-0", "1e5", "nan", "inf", "12e3"])
)


@given(st.lists(values, min_size=1, max_size=6))
@example(["007", "8"])
@example(["1e999", "2"])
@example(["nan", "nan"])
@example(["inf", "1"])
@example(["12345678901234567890", "12345678901234567891"])
def test_a_column_of_metadata_keeps_its_texts_or_is_of_the_same_finite_numbers(column):
    with tempfile.TemporaryDirectory() as base:
        source = Path(base) / "metadata.csv"
        with source.open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines).writerows(
                [("file_name", "value"), *((f"{n}.wav", text) for n, text in enumerate(column))]
            )
        metadata = read_metadata(Path(base), [source])
    found = metadata.table["value"].to_pylist()
    assert metadata.layout.files == [Path(base) / f"{n}.wav" for n in range(len(column))]
    assert metadata.table["file"].to_pylist() == [f"{n}.wav" for n in range(len(column))]
    if any(isinstance(value, str) for value in found):
        assert found == [text or None for text in column]
    else:
        assert [value is None for value in found] == [text == "" for text in column]
        assert all(str(value) == text for value, text in zip(found, column) if isinstance(value, int))
        assert all(Decimal(repr(value)) == Decimal(text) for value, text in zip(found, column) if text)
        assert np.isfinite([value for value in found if value is not None]).all()
