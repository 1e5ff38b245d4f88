"""Few-shot classifiers, fitted in a batch of episodes from inner products of clips.

Shapes: E episodes, W ways, S support clips per episode (sorted by class, equally many of each), Q queries.
"""

import torch
from torch.nn.functional import log_softmax, one_hot, softmax

_TOLERANCE = 1e-9  # of the optimality condition of the dual coefficients, in probability
_MAX_STEPS = 50
_MAX_HALVINGS = 30


def nearest_centroid(support_gram: torch.Tensor, query_gram: torch.Tensor, ways: int, cosine: bool) -> torch.Tensor:
    """Nearest-centroid scores (E, Q, W) of queries; larger is nearer to the mean of the class's support clips.

    Args:
        support_gram: (E, S, S) inner products of support clips.
        query_gram: (E, Q, S) inner products of queries and support clips.
        ways: W.
        cosine: True for the inner product with the centroid at length 1, which is the cosine of queries of length 1.
            False for scores in the order of Euclidean distance.

    Source:
        Wang et al., "SimpleShot: Revisiting nearest-neighbor classification for few-shot learning", 2019
        (arXiv 1911.04623), section 3: nearest centroid, unnormalized (UN) or on L2-normalized features (L2N).
        Differs from: with `cosine` the centroid is normalized as well.
    """
    products = query_gram.unflatten(-1, (ways, -1)).mean(-1)  # (E, Q, W)
    blocks = support_gram.unflatten(-1, (ways, -1)).mean(-1).unflatten(1, (ways, -1)).mean(2)  # (E, W, W)
    squares = blocks.diagonal(dim1=1, dim2=2)[:, None]  # (E, 1, W), squared lengths of centroids
    if cosine:
        return products / squares.clamp(min=0).sqrt().clamp(min=1e-12)
    return products - squares / 2


def logistic_regression(
    support_gram: torch.Tensor, query_gram: torch.Tensor, ways: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multinomial logistic regression with the objective of scikit-learn's LogisticRegression(C=1.0).

    Args:
        support_gram: (E, S, S) float64 inner products of support clips.
        query_gram: (E, Q, S) float64 inner products of queries and support clips.
        ways: W.

    Returns:
        Log-probabilities of queries, (E, Q, W), and convergence, (E,) bool, see `logistic_regression_duals`.
    """
    dual, intercept, converged = logistic_regression_duals(support_gram, ways)
    scores = query_gram @ dual.transpose(1, 2) + intercept[:, None]  # (E, Q, W)
    return log_softmax(scores, -1), converged


def logistic_regression_duals(
    support_gram: torch.Tensor, ways: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Dual coefficients and intercepts of `logistic_regression`.

    They minimize, over weights w_k and intercepts b_k of the classes k,

        sum over support clips of cross-entropy(softmax(w_k . x + b_k)) + 1/2 sum over k of |w_k|^2

    At the optimum w_k = sum over support clips i of a_ki x_i with a_ki = y_ki - p_ki, so inner products suffice: W x S
    unknowns for any embedding size. Newton's method in float64; a step is halved while it increases the objective.

    Args:
        support_gram: (E, S, S) float64 inner products of support clips.
        ways: W.

    Returns:
        Coefficients a, (E, W, S); intercepts b, (E, W); convergence, (E,) bool: a and y - p differ by at most 1e-9.

    Source:
        Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, section 3.5: the Newton step for a
        softmax over W functions by W Cholesky factors of S x S. The intercepts are added.
    """
    episodes, support = support_gram.shape[:2]
    targets = one_hot(torch.arange(ways, device=support_gram.device).repeat_interleave(support // ways)).T  # (W, S)
    targets = targets.to(support_gram).expand(episodes, -1, -1)
    dual = torch.zeros_like(targets)  # (E, W, S)
    intercept = targets.new_zeros(episodes, ways)
    value = _objective(dual, intercept, support_gram, targets)
    for _ in range(_MAX_STEPS):
        logits = dual @ support_gram + intercept[..., None]  # (E, W, S)
        probabilities = softmax(logits, 1)
        converged = (dual - (targets - probabilities)).abs().amax((1, 2)) <= _TOLERANCE
        if converged.all():
            break
        step = _newton_point(support_gram, logits, probabilities, targets)
        dual, intercept, value = _advance(dual, intercept, value, step, support_gram, targets)
    return dual, intercept, converged


def _objective(dual: torch.Tensor, intercept: torch.Tensor, gram: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    functions = dual @ gram  # (E, W, S)
    cross_entropy = -(targets * log_softmax(functions + intercept[..., None], 1)).sum((1, 2))
    return cross_entropy + (functions * dual).sum((1, 2)) / 2  # (E,)


def _newton_point(
    gram: torch.Tensor, logits: torch.Tensor, probabilities: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimum of the objective's quadratic model: dual coefficients (E, W, S) and intercepts (E, W).

    With the Hessian H of the cross-entropy in the logits, the Gram matrix K of each class and r = y - p + H logits,
    a = r - T (K r + b) and sum over clips of a = 0, where T = (K + H^-1)^-1.
    """
    roots = probabilities.sqrt()
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(identity + roots[..., None] * gram[:, None] * roots[..., None, :])  # (E, W, S, S)
    inverse = torch.cholesky_inverse(factor)
    inverse = roots[..., None] * inverse * roots[..., None, :]
    total = torch.linalg.cholesky(inverse.sum(1))  # (E, S, S)

    means = (probabilities * logits).sum(1, keepdim=True)  # (E, 1, S)
    right = targets - probabilities + probabilities * (logits - means)  # (E, W, S)
    product = (inverse @ (right @ gram)[..., None])[..., 0]  # (E, W, S)
    sums = inverse.sum(-1)  # (E, W, S)
    both = torch.stack([product.sum(1), *sums.unbind(1)], -1)  # (E, S, 1 + W)
    solved = torch.cholesky_solve(both, total)  # (E, S, 1 + W)
    base = right - product + (inverse @ solved[:, None, :, :1])[..., 0]  # (E, W, S): a without intercepts
    curvature = torch.diag_embed(sums.sum(-1)) - sums @ solved[..., 1:]  # (E, W, W)
    # Equal intercepts change nothing: in that direction the matrix is singular, and the solution is set to 0.
    curvature = curvature + curvature.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    intercept = torch.linalg.solve(curvature, base.sum(-1))  # (E, W)
    shared = solved[..., 1:] @ intercept[..., None]  # (E, S, 1)
    return base - sums * intercept[..., None] + (inverse @ shared[:, None])[..., 0], intercept


def _advance(
    dual: torch.Tensor,
    intercept: torch.Tensor,
    value: torch.Tensor,
    point: tuple[torch.Tensor, torch.Tensor],
    gram: torch.Tensor,
    targets: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Step to the point, halved for each episode until the objective does not increase."""
    share = torch.ones_like(value)
    for _ in range(_MAX_HALVINGS):
        new_dual = dual + share[:, None, None] * (point[0] - dual)
        new_intercept = intercept + share[:, None] * (point[1] - intercept)
        new_value = _objective(new_dual, new_intercept, gram, targets)
        worse = ~(new_value <= value + 1e-10 * value.abs())  # not by rounding alone
        if not worse.any():
            break
        share = torch.where(worse, share / 2, share)
    return new_dual, new_intercept, new_value


__all__ = ["logistic_regression", "logistic_regression_duals", "nearest_centroid"]
