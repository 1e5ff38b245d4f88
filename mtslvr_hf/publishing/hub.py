"""Publishing of a folder on the Hub: checks, upload, and a comparison of what arrived."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from ..files import sha256_of
from .kinds import ADAPTER, Kind, files_of, kind_of, left_out
from .loading import check_loading
from .staging import stage, validate_on_hub

HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of the HTTP library under huggingface_hub: httpx or httpx2


@dataclass(frozen=True)
class Publication:
    """Published files of a folder, or those that a dry run would publish.

    Attributes:
        kind: Kind of the folder.
        name: Name on the Hub.
        files: Paths and sizes in bytes.
        left_out: Files and folders that stay.
        url: Page of the commit or pull request; None for a dry run.
        revision: Commit; None for a dry run.
    """

    kind: Kind
    name: str
    files: dict[str, int]
    left_out: list[str]
    url: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        where = f"{self.kind.repo_type} {self.name}"
        lines = [f"{'Published' if self.url else 'Would publish'} the {self.kind.name} as {where}:"]
        lines += [f"  {size:>13,} bytes  {file}" for file, size in self.files.items()]
        if self.left_out:
            lines.append(f"Not published: {', '.join(self.left_out)}")
        if self.url:
            lines += [self.url, f"Load it with {self.kind.use.format(self.name)}."]
        return "\n".join(lines)


def publish(
    folder: str | Path,
    name: str,
    *,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    base_model: str | None = None,
    dry_run: str | Path | None = None,
    token: str | None = None,
) -> Publication:
    """Publishes a pre-trained model, a classifier, an adapter, embeddings or cached audio on the Hub.

    Before the upload, a copy of the files is made and checked. It loads in a new process without this package, with
    the same output to the last bit. The card is valid, has a license, and its results are those of the stored reports.
    No file is a pickle or holds a token or a local path; in JSON and YAML files, local paths become their last part.
    After the upload, the revision is downloaded and compared. An upload that was interrupted can be repeated. Files of
    an earlier upload that are no longer there are removed.

    Args:
        folder: Folder that training, `save_pretrained`, `save_adapter`, `mtslvr embed` or `mtslvr cache` wrote.
        name: Repository, `OWNER/NAME`; it is made if it does not exist.
        license: License as the Hub spells it; default: the card's. `unknown` says that it is not known.
        private: Make a new repository private.
        revision: Branch, made if it does not exist; default: main.
        create_pr: Open a pull request instead of a commit.
        base_model: Model of an adapter, a folder or a name on the Hub.
        dry_run: New folder for the files that would be published; nothing is uploaded.
        token: Token of the Hub; default: that of `hf auth login`, or HF_TOKEN.

    Raises:
        FileNotFoundError: If there is no such folder, or no card in it.
        FileExistsError: If the folder of a dry run exists.
        ValueError: If the folder is of no such kind, or a check fails; nothing has been uploaded then.
        OSError: If the Hub refuses, or cannot be reached, or what arrived differs.
    """
    folder = Path(folder)
    kind = kind_of(folder)
    if (kind == ADAPTER) != (base_model is not None):
        need = "needs" if kind == ADAPTER else "takes no"
        raise ValueError(f"the {kind.name} {folder} {need} `base_model`, the model that an adapter is for.")
    if name.count("/") != 1 or not all(name.split("/")):
        raise ValueError(f"the name is {name!r}; expected OWNER/NAME.")
    if dry_run is not None and Path(dry_run).exists():
        raise FileExistsError(f"{dry_run} exists: choose a new folder for the dry run.")
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / "staged"
        files = stage(folder, kind, name, license, base_model, staged)
        check_loading(folder, staged, kind, base_model)
        sizes = {file.as_posix(): (staged / file).stat().st_size for file in files}
        found = Publication(kind, name, sizes, left_out(folder, files))
        if dry_run is not None:
            shutil.copytree(staged, dry_run)
            return found
        with explained(name):
            url, commit = _upload(HfApi(token=token), staged, found, private, revision, create_pr)
            _compare(staged, found, commit, token)
    return Publication(kind, name, sizes, found.left_out, url, commit)


def _upload(
    api: HfApi, staged: Path, found: Publication, private: bool, revision: str | None, create_pr: bool
) -> tuple[str, str]:
    """URL of the commit or pull request, and the commit."""
    repo_type = found.kind.repo_type
    validate_on_hub(staged, found.kind)
    api.create_repo(found.name, repo_type=repo_type, private=private or None, exist_ok=True)
    if revision is not None:
        api.create_branch(found.name, repo_type=repo_type, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=found.name,
        repo_type=repo_type,
        folder_path=staged,
        revision=revision,
        create_pr=create_pr,
        commit_message=f"Publish {found.kind.name}",
        delete_patterns=[pattern.replace("**/", "*") for pattern in found.kind.files],  # there, * matches / as well
    )
    return commit.pr_url or str(commit.commit_url), str(commit.oid)


def _compare(staged: Path, found: Publication, commit: str, token: str | None) -> None:
    """Downloads a commit; raises an OSError if a file is missing or differs."""
    with tempfile.TemporaryDirectory() as temporary:
        arrived = Path(
            snapshot_download(
                found.name,
                repo_type=found.kind.repo_type,
                revision=commit,
                allow_patterns=list(found.files),
                local_dir=temporary,
                token=token,
            )
        )
        there = {path.as_posix() for path in files_of(arrived, found.kind)}
        wrong = [
            file for file in found.files if file not in there or sha256_of(arrived / file) != sha256_of(staged / file)
        ]
    if wrong:
        raise OSError(f"{found.name} at {commit} differs from what was uploaded: {', '.join(wrong)}. Publish again.")


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns errors of the Hub and of the network into an OSError that says what to do."""
    again = "The same command can be repeated."
    try:
        yield
    except RevisionNotFoundError as error:
        raise OSError(f"{name} on the Hub has no such revision: {_line(error)}.") from error
    except RepositoryNotFoundError as error:
        raise OSError(f"{name} cannot be found on the Hub, or the token may not see it: {_line(error)}.") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise OSError(
                f"the Hub does not let this token write to {name} ({status}): log in with `hf auth login` and a token "
                "that may write, as a member of the owner's organization."
            ) from error
        raise OSError(f"the Hub answered {status}: {_line(error)}. {again}") from error
    except HTTP_ERROR as error:
        raise OSError(f"the Hub could not be reached: {_line(error)}. {again}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


__all__ = ["Publication", "explained", "publish"]
