"""Licenses and authors of the audio in Debian packages, from their copyright files and the table `open_pool.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from debian_packages import UnpackedPackage

from mtslvr_hf.installation import install_hint

YEARS = re.compile(r"^(\(c\)|©|copyright|\d{4}|[\s,–-])+", re.IGNORECASE)  # before the authors of a copyright line


class License(NamedTuple):
    """Allowed license: its name, the address of its text, and other names of it in copyright files."""

    name: str
    url: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """Statement of the table about some files of a package, read from its texts by a person.

    Attributes:
        files: Patterns as in a copyright file: `*` stands for any characters, also for slashes.
        leave_out: Reason to leave the files out.
        license: Their license; default: that of the copyright file.
        authors: Their authors; default: those of the copyright file.
        quote: Sentence of the text that states it. The text must still contain it.
        text: Path of this text in the package; default: the copyright file.
    """

    files: list[str]
    leave_out: str | None = None
    license: str | None = None
    authors: str | None = None
    quote: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class PackageEntry:
    """Entry of a package in the table.

    Attributes:
        name: Name of the package.
        folders: Installed folders that hold its audio, and what they are called in the source package, whose files the
            copyright file names. Other folders are not used.
        rules: Statements about its files; of several that match, the last one counts.
        homepage: Address, if the copyright file states none.
    """

    name: str
    folders: dict[str, str]
    rules: list[Rule] = field(default_factory=list)
    homepage: str | None = None


class Table(NamedTuple):
    """Table of packages and licenses.

    Attributes:
        licenses: Allowed licenses by their names in lower case, all names of each.
        packages: Packages by name.
        refused: Packages that are never used, and why.
    """

    licenses: dict[str, License]
    packages: dict[str, PackageEntry]
    refused: dict[str, str]


class Terms(NamedTuple):
    """License and authors of a file."""

    license: str
    authors: str


class LeftOutError(ValueError):
    """File that is not used; the message is the reason."""


def read_table(path: Path) -> Table:
    """Table of a YAML file with the keys `licenses`, `packages` and `refused`.

    Raises:
        SystemExit: If a package is both used and refused, or an entry has unknown fields.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    licenses: dict[str, License] = {}
    for name, value in content["licenses"].items():
        license = License(name, value["url"], tuple(value.get("also", ())))
        licenses.update({known.lower(): license for known in (name, *license.also)})
    refused = {name: reason for reason, names in content["refused"].items() for name in names}
    both = sorted(refused.keys() & content["packages"].keys())
    if both:
        raise SystemExit(f"{path}: {both[0]} is refused ({refused[both[0]]}) and cannot be among the packages.")
    try:
        packages = {name: _read_entry(name, value) for name, value in sorted(content["packages"].items())}
    except (TypeError, AttributeError) as error:
        raise SystemExit(f"{path}: an entry of `packages` is wrong: {error}") from error
    return Table(licenses, packages, refused)


def _read_entry(name: str, value: Mapping[str, Any]) -> PackageEntry:
    rules = [Rule(**rule) for rule in value.get("rules", ())]
    return PackageEntry(name, **{**value, "rules": rules})


def choose_license(synopsis: str, licenses: Mapping[str, License]) -> str | None:
    """Allowed license of a copyright file's license name, or None.

    The name may be an expression: one of several alternatives ("GPL-2+ or CC-BY-SA-3.0") is enough, and of licenses
    that apply together ("CC-BY-3.0 and MIT") each must be allowed. "and" binds tighter than "or"; a comma before it
    changes this, as Debian's format says.
    """
    chosen = [_choose_alternative(part, licenses) for part in re.split(r",\s+and\s+", synopsis.strip().lower())]
    return None if None in chosen else " and ".join(filter(None, chosen))


def _choose_alternative(synopsis: str, licenses: Mapping[str, License]) -> str | None:
    for alternative in re.split(r",?\s+or\s+", synopsis):
        found = [licenses.get(name.strip()) for name in re.split(r"\s+and\s+", alternative)]
        if None not in found:
            return " and ".join(dict.fromkeys(license.name for license in found if license))
    return None


class PackageLicenses:
    """Licenses of the files of an unpacked package.

    Args:
        package: The package.
        entry: Its entry in the table.
        licenses: Allowed licenses.

    Attributes:
        homepage: Address in the copyright file or the entry; empty if there is none.

    Raises:
        SystemExit: If the package has no copyright file, or a sentence that the table quotes is not in its text.
    """

    def __init__(self, package: UnpackedPackage, entry: PackageEntry, licenses: Mapping[str, License]):
        self.entry, self.licenses = entry, licenses
        self.copyright_text = package.text(f"usr/share/doc/{package.name}/copyright")
        for rule in entry.rules:
            text = self.copyright_text if rule.text is None else package.text(rule.text)
            if rule.quote is not None and _words(rule.quote) not in _words(text):
                raise SystemExit(
                    f"{package.name} {package.version}: {rule.text or 'the copyright file'} does not say "
                    f"{rule.quote!r} about {rule.files[0]}. Read it again, and correct the table."
                )
        self.stanzas = parse_copyright(self.copyright_text)
        found = "" if self.stanzas is None else _first_url(self.stanzas.header)
        self.homepage = entry.homepage or found

    def terms(self, path: str) -> Terms | None:
        """License and authors of a file; None if it is in none of the entry's folders.

        Raises:
            LeftOutError: If its license is unknown or not allowed, or the table leaves it out; the message says why.
        """
        source = self._source_path(path)
        if source is None:
            return None
        rule = next((rule for rule in reversed(self.entry.rules) if _matches(rule.files, source)), None)
        if rule is not None and rule.leave_out:
            raise LeftOutError(rule.leave_out)
        stanza = self.stanzas.find_files_paragraph(source) if self.stanzas is not None else None
        synopsis = stanza.license.synopsis if stanza is not None and stanza.license is not None else None
        authors = _authors(stanza.copyright) if stanza is not None and stanza.copyright else None
        if rule is not None:
            synopsis, authors = rule.license or synopsis, rule.authors or authors
        if not synopsis or not authors:
            raise LeftOutError("license or authors not stated.")
        license = choose_license(synopsis, self.licenses)
        if license is None:
            raise LeftOutError(f"license {synopsis}")
        return Terms(license, authors)

    def _source_path(self, path: str) -> str | None:
        """Path of an installed file in the source package; None if it is in none of the entry's folders."""
        for installed, source in self.entry.folders.items():
            if path.startswith(installed):
                return source + path.removeprefix(installed)
        return None


def parse_copyright(text: str) -> Any:
    """Parsed copyright file (`debian.copyright.Copyright`), or None if it is not machine-readable (DEP-5).

    Raises:
        SystemExit: If python-debian is missing.
    """
    try:
        from debian.copyright import Copyright, NotMachineReadableError
    except ImportError as error:
        raise SystemExit(f"Copyright files are read with python-debian: {install_hint('pool')}.") from error
    if not re.match(r"\s*Format(-Specification)?:", text):
        return None
    try:
        return Copyright(text.splitlines(keepends=True), strict=False)
    except NotMachineReadableError:
        return None


def _matches(patterns: Sequence[str], path: str) -> bool:
    from debian.copyright import globs_to_re

    return globs_to_re(patterns).match(path) is not None


def _authors(copyright: str) -> str:
    """Copyright lines without the word, the years and repeated white space."""
    lines = (YEARS.sub("", line.strip()) for line in copyright.splitlines())
    return "; ".join(dict.fromkeys(" ".join(line.split()) for line in lines if line))


def _first_url(header: Any) -> str:
    found = re.search(r"https?://[^\s>,)]+", str(header["Source"]) if "Source" in header else "")
    return found.group() if found else ""


def _words(text: str) -> str:
    return " ".join(text.split())


__all__ = [
    "LeftOutError",
    "License",
    "PackageEntry",
    "PackageLicenses",
    "Rule",
    "Table",
    "Terms",
    "choose_license",
    "parse_copyright",
    "read_table",
]
