"""One-vs-all logistic regression by stochastic gradient descent, fitted in a batch of episodes from inner products.

Shapes: E episodes, W ways, S support clips per episode (sorted by class, equally many of each).
"""

import torch
from torch.nn.functional import logsigmoid

# The paper's settings of scikit-learn's SGDClassifier: max_iter, tol, eta0, n_iter_no_change; alpha is 0.
MAX_EPOCHS = 20
TOLERANCE = 1e-4
FIRST_RATE = 0.1
PATIENCE = 2
# Of learning_rate="adaptive": the division after PATIENCE epochs without progress, and the rate at which these end it.
_RATE_DIVISOR = 5
_LAST_RATE = 1e-6


def sgd_one_vs_all(
    support_gram: torch.Tensor, permutations: torch.Tensor, ways: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic regressions of each class against the others, by the steps of scikit-learn's SGDClassifier.

    Its settings are loss="log_loss", alpha=0, learning_rate="adaptive", eta0=0.1, max_iter=20, tol=1e-4,
    n_iter_no_change=2. The loss of an epoch is the mean over its clips, each before its own step. After two epochs in
    a row that did not lower the lowest loss by 1e-4, the learning rate is divided by 5, or the classifier is finished
    if its rate is 1e-6 or less.

    Weights start at 0 and are not regularized, so w_k = sum over support clips i of a_ki x_i, and inner products
    suffice. As in scikit-learn, a classifier has a single permutation, which each epoch applies to the order of the
    epoch before. scikit-learn's limit of the gradient to 1e12 has no effect: this gradient is at most 1.

    Args:
        support_gram: (E, S, S) float64 inner products of support clips.
        permutations: (E, W, S) int64 permutation of each classifier.
        ways: W.

    Returns:
        Coefficients a, (E, W, S), and intercepts, (E, W).

    Source:
        `_plain_sgd` in scikit-learn's `linear_model/_sgd_fast.pyx`, and the settings of the authors' evaluation code
        (`classifiers_/sklLinear.py`). Differs from: of two classes, scikit-learn fits one classifier.
    """
    support = support_gram.shape[1]
    dual = torch.zeros_like(permutations, dtype=support_gram.dtype)  # (E, W, S)
    classes = torch.arange(ways, device=dual.device)
    own = classes[:, None] == classes.repeat_interleave(support // ways)  # (W, S)
    signs = torch.where(own, 1.0, -1.0).to(dual).expand_as(dual)  # 1 of the class's own clips, -1 of the others
    intercept = dual.new_zeros(dual.shape[:2])  # (E, W)
    rate = torch.full_like(intercept, FIRST_RATE)  # 0 of finished classifiers
    best = torch.full_like(intercept, torch.inf)
    idle = torch.zeros_like(intercept, dtype=torch.int64)  # epochs in a row without progress
    order = torch.arange(support, device=dual.device).expand_as(permutations)
    for _ in range(MAX_EPOCHS):
        order = order.gather(-1, permutations)
        loss = torch.zeros_like(intercept)
        for clip in order.split(1, -1):  # (E, W, 1)
            products = support_gram.gather(1, clip.expand_as(dual))  # (E, W, S)
            sign = signs.gather(-1, clip)[..., 0]
            margin = sign * ((dual * products).sum(-1) + intercept)
            loss = loss - logsigmoid(margin)
            step = rate * sign * torch.sigmoid(-margin)
            dual.scatter_add_(-1, clip, step[..., None])
            intercept = intercept + step
        loss = loss / support
        idle = torch.where(loss > best - TOLERANCE, idle + 1, 0)
        best = torch.minimum(best, loss)
        out_of_patience = idle >= PATIENCE
        lower = torch.where(rate > _LAST_RATE, rate / _RATE_DIVISOR, 0)
        rate = torch.where(out_of_patience, lower, rate)
        idle = torch.where(out_of_patience, 0, idle)
        if not rate.any():
            break
    return dual, intercept


__all__ = ["FIRST_RATE", "MAX_EPOCHS", "PATIENCE", "TOLERANCE", "sgd_one_vs_all"]
