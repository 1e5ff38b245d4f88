"""Protocol of an evaluation in sentences."""

from .results import DataResult, EvaluationReport

CLASSIFIER_WORDS = {
    "centroid": "nearest centroid by cosine similarity",
    "logistic": "multinomial logistic regression (L2, C = 1, free intercepts) on embeddings of length 1",
}


def protocol(report: EvaluationReport) -> list[str]:
    """Sentences for all data sets."""
    drawn = report.protocol
    sentences = [
        f"{drawn.ways}-way {drawn.shots}-shot accuracy: {drawn.episodes:,} episodes of {drawn.queries} queries a "
        f"class, seed {drawn.seed}, mean and 95 % interval over episodes; chance is {100 / drawn.ways:.1f} %.",
        "All embeddings of a data set are scored on the same episodes: dimensions standardized over its clips without "
        f"their labels, then {CLASSIFIER_WORDS[report.classifier]}.",
    ]
    if any(row.model.startswith("untrained network") for result in report.results for row in result.rows):
        sentences.append(
            f"An untrained network has the weights of seed {drawn.seed}; another seed's may differ by more than the "
            "interval."
        )
    if report.average_ranks:
        sentences.append(
            "Average ranks are those of the models' main embeddings, 1 being the best; ties share the mean of their "
            "ranks. A difference is that of two main embeddings' accuracies, episode by episode."
        )
    return sentences


def data_protocol(result: DataResult) -> list[str]:
    """Sentences for one data set."""
    sentences = [f"{result.clips:,} clips of {len(result.classes)} classes from {result.source}."]
    if result.episodes_sha256:
        sentences[0] += f" Episode list {result.episodes_sha256[:12]}."
    else:
        sentences.append("Clips have several classes or none: there are no few-shot episodes.")
    if result.group_disjoint:
        sentences.append("An episode's queries come from other groups than its support.")
    if result.bad_clips:
        first = "; ".join(result.bad_clips[:3]) + ("; ..." if len(result.bad_clips) > 3 else "")
        sentences.append(f"Clips left out because they cannot be used: {len(result.bad_clips)} ({first}).")
    if result.note:
        sentences.append(result.note.rstrip(".") + ".")
    if result.left_out:
        sentences.append("Left out: " + "; ".join(f"{name} ({why})" for name, why in result.left_out.items()) + ".")
    return sentences


__all__ = ["data_protocol", "protocol"]
