"""Protocol of an evaluation in sentences."""

from ..few_shot.sgd import FIRST_RATE, MAX_EPOCHS, PATIENCE, TOLERANCE
from ..pieces import PIECE_SECONDS
from .results import DataResult, EvaluationReport, FewShotProtocol, PaperProtocol

CLASSIFIER_WORDS = {
    "centroid": "nearest centroid by cosine similarity",
    "logistic": "multinomial logistic regression (L2, C = 1, free intercepts) on embeddings of length 1",
}
GROUPS_APART = "An episode's queries come from other groups than its support."


def few_shot_protocol(report: EvaluationReport) -> list[str]:
    """Sentences about the episodes and their classifier."""
    drawn = report.protocol
    sentences = [
        f"{drawn.ways}-way {drawn.shots}-shot accuracy: {drawn.episodes:,} episodes of {queries(drawn)} a class, "
        f"seed {drawn.seed}, mean and 95 % interval over episodes; chance is {100 / drawn.ways:.1f} %.",
    ]
    if isinstance(drawn, PaperProtocol):
        sentences += _paper(report)
    else:
        sentences.append(
            "All embeddings of a data set are scored on the same episodes: dimensions standardized over its clips "
            f"without their labels, then {CLASSIFIER_WORDS[report.classifier]}."
        )
    return sentences


def protocol(report: EvaluationReport) -> list[str]:
    """Sentences for all data sets."""
    sentences = few_shot_protocol(report)
    scaled = {row.model for result in report.results for row in result.rows if row.keeps_scales}
    if scaled:
        sentences.append(f"The heads of {', '.join(sorted(scaled))} keep the scales of the configuration.")
    if any(row.model.startswith("untrained network") for result in report.results for row in result.rows):
        sentences.append(untrained_network(report))
    if report.average_ranks and len(report.results) > 1:
        sentences.append(
            "Average ranks are those of the models' main embeddings, 1 being the best; ties share the mean of their "
            "ranks."
        )
    if any(result.differences for result in report.results):
        sentences.append("A difference is that of two main embeddings' accuracies, episode by episode.")
    return sentences


def untrained_network(report: EvaluationReport) -> str:
    """Sentence about the weights of an untrained network."""
    return (
        f"An untrained network has the weights of seed {report.protocol.seed}; another seed's may differ by more than "
        "the interval."
    )


def queries(drawn: FewShotProtocol) -> str:
    """Number of queries in words."""
    return "1 query" if drawn.queries == 1 else f"{drawn.queries} queries"


def _paper(report: EvaluationReport) -> list[str]:
    """Sentences about the paper's protocol, and how the episodes differ from the paper's."""
    drawn = report.protocol
    sentences = [
        f"The paper's protocol: clips are cut into pieces of {PIECE_SECONDS:g} s, a shorter piece is repeated to this "
        "length, and each piece is embedded on its own. A support clip stands for one random piece of it. All pieces "
        "of a query are classified, and it gets the class of most of them (of several, the episode's first).",
        "All embeddings of a data set are scored on the same episodes, as they are (dimensions not standardized, "
        "lengths not scaled), by one-vs-all logistic regression as scikit-learn's SGDClassifier fits it: "
        f"{MAX_EPOCHS} epochs at most, no regularization, adaptive learning rate from {FIRST_RATE:g}, tolerance "
        f"{TOLERANCE:g} over {PATIENCE} epochs.",
    ]
    if drawn.episodes != PaperProtocol.episodes:
        sentences.append(f"The paper has {PaperProtocol.episodes:,} episodes.")
    if any(result.group_disjoint for result in report.results):
        sentences.append("The paper does not keep groups apart.")
    return sentences


def weight_shares_words(report: EvaluationReport) -> str:
    """Sentence about the measure of weight shares."""
    if isinstance(report.protocol, PaperProtocol):
        return (
            "Share of a head in the average absolute weight per dimension of each episode's classifiers, mean and "
            "95 % interval over episodes. The features are raw: a head with larger values has larger weights, however "
            "useful it is."
        )
    return (
        "Share of the sum of absolute weights of each episode's logistic regression that lies on a head's dimensions, "
        "mean and 95 % interval over episodes."
    )


def clips_and_source(result: DataResult) -> str:
    """Sentence with the number of clips and classes, and their source."""
    return f"{result.clips:,} clips of {len(result.classes)} classes from {result.source}."


def data_protocol(result: DataResult) -> list[str]:
    """Sentences for one data set."""
    sentences = [clips_and_source(result)]
    if result.episodes_sha256:
        sentences[0] += f" Episode list {result.episodes_sha256[:12]}."
    else:
        sentences.append("Clips have several classes or none: there are no few-shot episodes.")
    if result.pieces:
        silent = f", without {result.silent_pieces:,} that are silent" if result.silent_pieces else ""
        sentences.append(f"Pieces of these clips: {result.pieces:,}{silent}.")
    if result.group_disjoint:
        sentences.append(GROUPS_APART)
    if result.bad_clips:
        first = "; ".join(result.bad_clips[:3]) + ("; ..." if len(result.bad_clips) > 3 else "")
        sentences.append(f"Clips left out because they cannot be used: {len(result.bad_clips)} ({first}).")
    if result.note:
        sentences.append(result.note.rstrip(".") + ".")
    if result.left_out:
        sentences.append("Left out: " + "; ".join(f"{name} ({why})" for name, why in result.left_out.items()) + ".")
    return sentences


__all__ = [
    "GROUPS_APART",
    "clips_and_source",
    "data_protocol",
    "few_shot_protocol",
    "protocol",
    "queries",
    "untrained_network",
    "weight_shares_words",
]
