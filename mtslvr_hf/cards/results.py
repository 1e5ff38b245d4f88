"""Measured results of a model in its model card: table, metadata, and `results.json`, which publishing compares."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import EvalResult, ModelCard
from yaml import YAMLError

from ..files import sha256_of, write_json
from ..markdown import markdown_table
from .parts import eval_result, save_card

logger = logging.getLogger(__name__)

RESULTS = "results.json"
EMBEDDINGS = {"": "its embedding", "both": "both embeddings", "all": "all embeddings"}
SECTION = re.compile(r"^## Results\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
NEXT_SECTION = re.compile(r"^## (The paper's figures\b|Limits$)", re.MULTILINE)  # the first one after the results
NO_RESULT = re.compile(
    r"^(- No result has been measured.*\n|Not trained yet.*\n\n|This project has measured no weights of this row.*\n)",
    re.MULTILINE,
)
INTRODUCTION = (
    "Measured with these weights by `mtslvr evaluate`; no figure is copied from elsewhere. Intervals are 95 %."
)
BASELINES = (
    "The baselines, in the columns beside the model's, are of the same run; the untrained network has the model's "
    "architecture."
)
INVARIANCE = (
    "Distance between the embeddings of a clip and its augmented copy, divided by the distance of two clips, at "
    "shares of the strongest augmentation: 0 is invariant. Presence: accuracy of a linear probe for augmented or "
    "original; 0.5 is chance. R2: of a linear probe for the parameter."
)
Row = TypeVar("Row", bound="MeasuredResult | MeasuredInvariance")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Value of a metric between 0 and 1, and its 95 % interval, (lower, upper)."""

    value: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        """Per cent, such as "71.1 (70.9 to 71.3)"."""
        if self.interval is None:
            return f"{100 * self.value:.1f}"
        return "{:.1f} ({:.1f} to {:.1f})".format(*(100 * each for each in (self.value, *self.interval)))


@dataclass(frozen=True, kw_only=True)
class MeasuredResult(Score):
    """Measured value of a metric, with the facts that are needed to measure it again."""

    dataset: str  # name of the evaluation data set, on the Hub if it is there
    protocol: str  # in short, without the data: "5-way 1-shot, nearest centroid, 10,000 episodes"
    metric: str = "accuracy"  # identifier on the Hub
    embedding: str = "both"  # a task's name, "both" or "all"; empty for a model that has only one
    read_as: str = ""  # pooling of the embedding, if it is not that of the configuration
    dataset_split: str | None = None
    classes: int | None = None  # number of classes
    data: str = ""  # sentences about the data
    words: str = ""  # sentences about the protocol
    details: str = ""  # facts of this value alone, such as the regularization of a probe; not in the card's text
    baselines: Mapping[str, Score] = field(default_factory=dict)  # of the same run, by name
    seed: int | None = None
    date: str | None = None  # "2026-11-02"
    command: str | None = None  # prints the value

    @property
    def key(self) -> tuple[Any, ...]:
        """Key of the result: a later one with the same key replaces it."""
        own = (self.dataset, self.dataset_split, self.classes, self.protocol, self.seed)
        return (*own, self.metric, self.embedding, self.read_as)

    @property
    def embedding_text(self) -> str:
        text = EMBEDDINGS.get(self.embedding, f"{self.embedding} embedding")
        return f"{text} ({self.read_as})" if self.read_as else text

    @property
    def data_text(self) -> str:
        return self.dataset + (f", {self.dataset_split}" if self.dataset_split else "")

    def metadata(self) -> EvalResult:
        """Metadata of the result for the Hub."""
        details = {
            "protocol": self.protocol,
            "interval_95": None if self.interval is None else list(self.interval),
            "seed": self.seed,
            "details": self.details or None,
            "date": self.date,
            "command": self.command,
            "measured_by": "this run, with these weights",
        }
        return eval_result(
            self.dataset,
            self.dataset_split,
            self.metric,
            self.value,
            # The Hub's library has one task per data set, so the protocol is part of the metric.
            task_name="classification of frozen embeddings",
            metric_name=f"{self.metric}, {self.embedding_text}: {self.protocol}",
            metric_args={name: value for name, value in details.items() if value is not None},
        )


@dataclass(frozen=True, kw_only=True)
class MeasuredInvariance:
    """Effect of each augmentation on a model's embeddings, as a table."""

    dataset: str  # names of the data sets
    clips: int
    seed: int
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    read_as: str = ""  # as in `MeasuredResult`
    date: str | None = None
    command: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Key of the table: a later one with the same key replaces it."""
        return (self.dataset, self.clips, self.seed, self.read_as)


def results_section(results: Sequence[MeasuredResult], invariance: Sequence[MeasuredInvariance] = ()) -> str:
    """Section of results for the card: a table per protocol, then invariance; without a line break at its end."""
    baselines = f" {BASELINES}" if any(result.baselines for result in results) else ""
    blocks = ["## Results", INTRODUCTION + baselines]
    groups: dict[tuple[Any, ...], list[MeasuredResult]] = {}
    for result in results:
        groups.setdefault((result.protocol, result.seed, result.metric, result.words), []).append(result)
    for (protocol, seed, metric, words), group in groups.items():
        blocks.append(f"### {protocol}")
        # Words about a protocol name the seed.
        text = words or ("" if seed is None else f"Seed {seed}.")
        blocks += [text] if text else []
        blocks += [_table(metric, group), _runs(group)]
    for table in invariance:
        blocks.append("### Invariance" + (f" ({table.read_as})" if table.read_as else ""))
        blocks += [INVARIANCE, markdown_table(table.header, table.rows)]
        run = f" {_run(table)}" if table.date or table.command else ""
        blocks.append(f"{table.clips} clips of {table.dataset}, seed {table.seed}.{run}")
    return "\n\n".join(blocks)


def _table(metric: str, results: Sequence[MeasuredResult]) -> str:
    """Table with a row per data set and embedding, and the baselines beside."""
    baselines = list(dict.fromkeys(name for result in results for name in result.baselines))
    header = ["data", "embedding", f"{metric}, %", *(f"{name}, %" for name in baselines)]
    rows = [
        [result.data_text, result.embedding + (f" ({result.read_as})" if result.read_as else ""), str(result)]
        + [str(result.baselines.get(name, "")) for name in baselines]
        for result in results
    ]
    return markdown_table(header, rows)


def _runs(results: Sequence[MeasuredResult]) -> str:
    """List of the data, each with what measured it; the last item of several is of one run."""
    runs: dict[str, dict[str, None]] = {}
    for result in results:
        data = f"{result.data_text}: {result.data}" if result.data else f"{result.data_text}."
        runs.setdefault(_run(result), {})[data] = None
    lines = []
    for run, of_run in runs.items():
        lines += [f"- {each}" for each in of_run]
        lines[-1] += f" {run}" if len(of_run) == 1 else f"\n- These data sets: {run[0].lower()}{run[1:]}"
    return "\n".join(lines)


def _run(of: MeasuredResult | MeasuredInvariance) -> str:
    """Sentence about the run that measured a value."""
    when = f" on {of.date}" if of.date else ""
    return f"Measured by this run{when}" + (f": `{of.command}`." if of.command else ".")


def write_results(
    folder: str | Path, results: Sequence[MeasuredResult], invariance: Sequence[MeasuredInvariance] = ()
) -> None:
    """Writes results into a pre-trained model's README.md and `results.json`.

    In the card, the section `## Results` and the metadata of results are replaced. Earlier results of these weights
    stay, but for those of the same data, protocol and embedding; results of other weights do not.

    Args:
        folder: The model's folder.
        results: At least one, or `invariance`.

    Raises:
        FileNotFoundError: If there is no README.md.
        ValueError: If it is not the card of a pre-trained model of this package, or `results.json` cannot be read.
    """
    folder = Path(folder)
    card = read_pretrained_card(folder)
    weights = weights_of(folder)
    earlier = _read(folder / RESULTS) if (folder / RESULTS).is_file() else None
    if earlier is not None and earlier[0] == weights:
        results = _merged(earlier[1], results)
        invariance = _merged(earlier[2], invariance)
    elif earlier is not None:
        logger.warning("The earlier results in %s are of other weights and are removed.", folder / RESULTS)
    data: Any = card.data
    section = results_section(results, invariance)
    text, replaced = SECTION.subn(lambda _: f"{section}\n\n", NO_RESULT.sub("", card.text), count=1)
    if not replaced:
        place = NEXT_SECTION.search(text)
        end = len(text) if place is None else place.start()
        text = f"{text[:end].rstrip()}\n\n{section}\n\n{text[end:]}"
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    card.text = text
    data.model_name = data.model_name or (title[1] if title else folder.resolve().name)
    data.metrics = sorted({result.metric for result in results}) or None
    data.eval_results = [result.metadata() for result in results] or None
    save_card(card, folder)
    content = {"results": [asdict(each) for each in results], "invariance": [asdict(each) for each in invariance]}
    write_json(folder / RESULTS, {"weights": weights, **content})


def read_pretrained_card(folder: str | Path) -> ModelCard:
    """Card of a pre-trained model of this package.

    Raises:
        FileNotFoundError: If there is no README.md.
        ValueError: If it is not such a card.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: training writes it, or `create_model_card(config).save(path)`.")
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (YAMLError, ValueError) as error:
        raise ValueError(f"The metadata of {path} cannot be read: {error}. Correct the YAML.") from error
    data: Any = card.data
    if "mtslvr" not in (data.tags or ()) or data.pipeline_tag != "feature-extraction":
        raise ValueError(
            f"{path} is not the card of a pre-trained MT-SLVR model: expected the tag mtslvr and the pipeline "
            "feature-extraction. It was not changed."
        )
    return card


def weights_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights in a folder, by name."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}


def check_results(folder: Path) -> bool:
    """True if a card's results are those of the folder's reports; False if it has results without a report.

    The reports are `results.json` of [`write_results`] and, for a classifier, `eval_results.json` of its training.

    Raises:
        ValueError: If the card's results differ from the reports, or the weights from those that were measured.
    """
    card = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    in_card = getattr(card.data, "eval_results", None) or []
    reports, training = folder / RESULTS, folder / "eval_results.json"
    if reports.is_file():
        weights, results, invariance = _read(reports)
        again = f"evaluate again with `--update-card`, or remove {RESULTS} and the section Results."
        if weights != weights_of(folder):
            raise ValueError(f"the results in {RESULTS} are of other weights: {again}")
        measured = sorted(_number(result.metadata()) for result in results)
        if results_section(results, invariance) not in card.text or measured != sorted(map(_number, in_card)):
            raise ValueError(f"the results in the card differ from {RESULTS}: {again}")
    elif in_card and training.is_file():
        found = json.loads(training.read_text(encoding="utf-8"))
        for each in in_card:
            value = found.get(f"eval_{each.metric_type}")
            if value is not None and value != each.metric_value:
                raise ValueError(
                    f"the card says {each.metric_type} {each.metric_value}, and {training.name} says {value}."
                )
    else:
        return not in_card
    return True


def _merged(earlier: Iterable[Row], later: Iterable[Row]) -> list[Row]:
    """Earlier results and later ones, which replace those with the same key."""
    return list({each.key: each for each in (*earlier, *later)}.values())


def _read(path: Path) -> tuple[dict[str, str], list[MeasuredResult], list[MeasuredInvariance]]:
    """Weights, results and invariance in a `results.json`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        results = []
        for each in content["results"]:
            baselines = {name: Score(**_score(one)) for name, one in each["baselines"].items()}
            results.append(MeasuredResult(**{**_score(each), "baselines": baselines}))
        return content["weights"], results, [MeasuredInvariance(**each) for each in content["invariance"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no {RESULTS} of this version ({error!r}): remove it.") from error


def _score(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a score, with the interval as a tuple."""
    return {**values, "interval": values["interval"] and tuple(values["interval"])}


def _number(result: EvalResult) -> tuple[str, str, str, Any]:
    return result.dataset_type, result.metric_type, str(result.metric_name), result.metric_value


__all__ = [
    "RESULTS",
    "MeasuredInvariance",
    "MeasuredResult",
    "Score",
    "check_results",
    "read_pretrained_card",
    "results_section",
    "weights_of",
    "write_results",
]
