"""Measured results of a model, from an evaluation's report into the model's card."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from yaml import YAMLError

from ..files import write_json
from .parts import eval_result, is_hub_name, save_card

RESULTS = "results.json"  # the results in the card, which publishing compares with it

CLASSIFIERS = {
    "centroid": "nearest centroid",
    "logistic": "logistic regression",
    "sgd": "the paper's protocol (5 s pieces, SGD on raw embeddings)",
}
EMBEDDINGS = {"": "its embedding", "both": "both embeddings", "all": "all embeddings"}
SECTION = re.compile(r"^## Results\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
NO_RESULT = re.compile(r"^(- No result has been measured.*\n|Not trained yet.*\n\n)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class MeasuredResult:
    """Measured value of a metric, with the facts that are needed to measure it again."""

    dataset: str  # name of the evaluation data set, on the Hub if it is there
    protocol: str  # "5-way 1-shot, nearest centroid, 10,000 episodes"
    value: float  # between 0 and 1
    metric: str = "accuracy"  # identifier on the Hub
    embedding: str = "both"  # a task's name, "both" or "all"; empty for a model that has only one
    dataset_split: str | None = None  # or the classes
    interval: tuple[float, float] | None = None  # 95 %: (lower, upper)
    seed: int | None = None
    command: str | None = None  # prints the value
    measured_by: str | None = None

    @property
    def embedding_text(self) -> str:
        return EMBEDDINGS.get(self.embedding, f"{self.embedding} embedding")

    def __str__(self) -> str:
        """Sentence with the value, the protocol and the author."""
        text = f"**{self.metric} {self.value:.4f}**"
        if self.interval is not None:
            text += " (95 % interval {:.4f} to {:.4f})".format(*self.interval)
        text += f" on {self.dataset}" + (f", {self.dataset_split}" if self.dataset_split else "")
        text += (
            f": {self.protocol}, {self.embedding_text}" + ("" if self.seed is None else f", seed {self.seed}") + "."
        )
        if self.measured_by or self.command:
            text += " Measured" + (f" by {self.measured_by}" if self.measured_by else "")
            text += (f" with `{self.command}`" if self.command else "") + "."
        return text

    def metadata(self) -> EvalResult:
        """Metadata of the result for the Hub."""
        interval = None if self.interval is None else list(self.interval)
        details = {"interval_95": interval, "seed": self.seed, "command": self.command}
        return eval_result(
            self.dataset,
            self.dataset_split,
            self.metric,
            self.value,
            task_name=self.protocol,
            metric_name=f"{self.metric}, {self.embedding_text}",
            metric_args={name: value for name, value in details.items() if value is not None} or None,
        )


def results_from(report: str | Path, model: str | Path) -> list[MeasuredResult]:
    """Few-shot accuracies and probes of one model, from the `report.json` of `mtslvr evaluate --output`.

    Args:
        report: The file.
        model: The model's name in the report, or its folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such report, or has no result of this model.
    """
    if not Path(report).is_file():
        raise FileNotFoundError(f"There is no report {report}: `mtslvr evaluate --output FOLDER` writes report.json.")
    text = Path(report).read_text(encoding="utf-8")
    found: dict[str, list[MeasuredResult]] = {}
    try:
        content = json.loads(text)
        for data in content["results"]:
            for row in data["rows"]:
                found.setdefault(row["model"], []).extend(_results_of(content, data, row))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{report} is no report of this version ({error!r}): give the report.json of `mtslvr evaluate --output`."
        ) from error
    same = [name for name in found if Path(name).resolve() == Path(model).resolve()]
    names = [str(model)] if str(model) in found else same
    if len(names) != 1:
        which = f"calls {model} by several names" if names else f"has no model {model}"
        raise ValueError(f"{report} {which}; choose one of these: {', '.join(names or found)}.")
    if not found[names[0]]:
        raise ValueError(f"{report} has neither accuracy nor probe of {names[0]}: evaluate it with `--probe linear`.")
    return found[names[0]]


def _results_of(
    content: Mapping[str, Any], data: Mapping[str, Any], row: Mapping[str, Any]
) -> Iterator[MeasuredResult]:
    """Results in one row of a report: few-shot accuracy, if measured, and probes."""
    drawn, place = content["protocol"], data["source"].split()[0]
    common = {"dataset": place if is_hub_name(place) else data["data"], "embedding": row["embedding"]}
    clips = f"{data['clips']:,} clips of {len(data['classes'])} classes from {data['source']}"
    clips += ", groups kept apart" if data["group_disjoint"] else ""
    if row["accuracy"] is not None:
        value, half = row["accuracy"], row["interval"]
        queries = "1 query" if drawn["queries"] == 1 else f"{drawn['queries']} queries"
        yield MeasuredResult(
            protocol=f"{drawn['ways']}-way {drawn['shots']}-shot, {CLASSIFIERS[content['classifier']]}, "
            f"{drawn['episodes']:,} episodes of {queries} a class "
            f"(list {data['episodes_sha256'][:12]}), {clips}",
            value=round(value, 6),
            interval=None if math.isnan(half) else (round(value - half, 6), round(value + half, 6)),
            seed=drawn["seed"],
            **common,
        )
    for probe in row["probes"]:
        lower, upper = probe["interval"]
        yield MeasuredResult(
            protocol=f"{probe['protocol']}; {clips}",  # it names the seed
            value=round(probe["value"], 6),
            metric=probe["metric"],
            interval=(round(lower, 6), round(upper, 6)),
            **common,
        )


def results_section(results: Sequence[MeasuredResult]) -> str:
    """Section of results for the card, without a line break at its end."""
    return "\n".join(["## Results", "", *(f"- {result}" for result in results)])


def write_results(folder: str | Path, results: Sequence[MeasuredResult]) -> None:
    """Writes results into a pre-trained model's README.md and `results.json`.

    In the card, the section `## Results` and the metadata of results are replaced.

    Raises:
        FileNotFoundError: If there is no README.md.
        ValueError: If it is not the card of a pre-trained model of this package.
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
    section = results_section(results)
    text, replaced = SECTION.subn(lambda _: f"{section}\n\n", NO_RESULT.sub("", card.text), count=1)
    if not replaced:
        before, limits, after = text.partition("\n## Limits\n")
        text = f"{before.rstrip()}\n\n{section}\n{limits}{after}"
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    card.text = text
    data.model_name = data.model_name or (title[1] if title else path.parent.resolve().name)
    data.metrics = sorted({result.metric for result in results})
    data.eval_results = [result.metadata() for result in results]
    save_card(card, path.parent)
    write_json(path.parent / RESULTS, [asdict(result) for result in results])


def check_results(folder: Path) -> bool:
    """True if a card's results are those of the folder's reports; False if it has results without a report.

    The reports are `results.json` of [`write_results`] and, for a classifier, `eval_results.json` of its training.

    Raises:
        ValueError: If the card's results differ from the reports.
    """
    card = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    in_card = getattr(card.data, "eval_results", None) or []
    reports, training = folder / RESULTS, folder / "eval_results.json"
    if reports.is_file():
        results = [
            MeasuredResult(**{**each, "interval": each["interval"] and tuple(each["interval"])})
            for each in json.loads(reports.read_text(encoding="utf-8"))
        ]
        same = results_section(results) in card.text and [_number(result.metadata()) for result in results] == [
            _number(each) for each in in_card
        ]
        if not same:
            raise ValueError(f"the results in the card differ from {RESULTS}: write them again with `mtslvr card`.")
    elif in_card and training.is_file():
        measured = json.loads(training.read_text(encoding="utf-8"))
        for each in in_card:
            value = measured.get(f"eval_{each.metric_type}")
            if value is not None and value != each.metric_value:
                raise ValueError(
                    f"the card says {each.metric_type} {each.metric_value}, and {training.name} says {value}."
                )
    else:
        return not in_card
    return True


def _number(result: EvalResult) -> tuple[str, str, str | None, Any]:
    return result.dataset_type, result.metric_type, result.metric_name, result.metric_value


__all__ = ["RESULTS", "MeasuredResult", "check_results", "results_from", "results_section", "write_results"]
