"""What frozen features know: ridge regression in closed form, a linear classifier, nearest neighbours."""

from collections.abc import Sequence

import torch
from noiseworks.core.errors import InputError
from torch import Tensor


def standardise(train: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Return features in units of the training set's mean and deviation (plus 1e-5), float64."""
    mean, std = train.double().mean(0), train.double().std(0) + 1e-5
    return tuple((part.double() - mean) / std for part in (train, *others))


def ridge_weights(features: Tensor, targets: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """Return `(XᵀX + λ I)^{-1} Xᵀ Y` (d, K) for every λ > 0, from one eigendecomposition.

    With fewer rows than columns it is that of XXᵀ (the dual form).

    Args:
        features: X (n, d).
        targets: Y (n, K).
        penalties: The λ.

    Raises:
        InputError: On a penalty that is not above 0.
    """
    if min(penalties) <= 0:
        raise InputError(f"penalties must be above 0, got {min(penalties)}")
    X, Y = features.double(), targets.double()
    dual = X.shape[0] < X.shape[1]
    values, vectors = torch.linalg.eigh(X @ X.T if dual else X.T @ X)
    turned = vectors.T @ (Y if dual else X.T @ Y)
    solved = [vectors @ (turned / (values.clamp(min=0) + penalty)[:, None]) for penalty in penalties]
    return [X.T @ one for one in solved] if dual else solved


def ridge_probe(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    shots: int | None = None,
    penalties: Sequence[float] = (1.0, 32.0, 1024.0, 32768.0),
    seed: int = 0,
) -> dict[float, float]:
    """Return the test accuracy by penalty of a ridge regression to targets of ±1.

    Features are standardised and get a constant column of 100, so that the offset is hardly penalised.

    Args:
        train: Features (n, d) and labels (n,).
        test: The same.
        shots: Rows of each class that are used; by default all.
        penalties: The λ.
        seed: Which rows.

    Raises:
        InputError: When a class has fewer rows than `shots`.
    """
    features, labels = train
    if shots is not None:
        rows = _few(labels, shots, torch.Generator().manual_seed(seed))
        features, labels = features[rows], labels[rows]
    known, asked = (torch.nn.functional.pad(x, (0, 1), value=100.0) for x in standardise(features, test[0]))
    classes = int(max(labels.max(), test[1].max())) + 1
    targets = 2.0 * torch.nn.functional.one_hot(labels, classes) - 1
    found = zip(penalties, ridge_weights(known, targets, penalties), strict=True)
    return {penalty: _accuracy(asked @ weights, test[1]) for penalty, weights in found}


def _few(labels: Tensor, shots: int, generator: torch.Generator) -> Tensor:
    chosen = []
    for label in labels.unique():
        rows = torch.where(labels == label)[0]
        if len(rows) < shots:
            raise InputError(f"class {int(label)} has {len(rows)} rows, fewer than shots {shots}")
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:shots]])
    return torch.cat(chosen)


FEW_SHOT_PENALTY = 1024.0


def few_shot(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], shots: int, seeds: int = 3) -> float:
    """Return the accuracy of the few-shot protocol, the mean over draws of the shots.

    Ridge regression with penalty 1024 on standardised features to targets of ±1.

    Args:
        train: Features (n, d) and labels (n,).
        test: The same.
        shots: Images of a class.
        seeds: Draws.

    Raises:
        InputError: When a class has fewer images.
    """
    found = [
        ridge_probe(train, test, shots=shots, penalties=(FEW_SHOT_PENALTY,), seed=seed)[FEW_SHOT_PENALTY]
        for seed in range(seeds)
    ]
    return sum(found) / len(found)


def check_shots(labels: Tensor, shots: tuple[int, ...]) -> None:
    """Refuse more shots than the smallest class has images.

    Raises:
        InputError: Naming both.
    """
    smallest = int(labels.bincount().min())
    if max(shots) > smallest:
        raise InputError(
            f"shots must be at most {smallest}, the images of the smallest class, got {max(shots)}"
        )


def linear_probe(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    penalties: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
) -> float:
    """Return the test accuracy of a softmax regression whose penalty was chosen on validation data.

    Args:
        train: Features (n, d) and labels (n,).
        validation: The same.
        test: The same.
        penalties: Weights of half the squared norm, beside the mean loss of a row.
    """
    known, held, asked = standardise(train[0], validation[0], test[0])
    classes = int(max(part[1].max() for part in (train, validation, test))) + 1
    weights = torch.zeros(known.shape[1] + 1, classes, dtype=torch.float64, requires_grad=True)
    best, answer = -1.0, 0.0
    for penalty in sorted(penalties, reverse=True):  # each begins where the stronger one ended
        _fit_softmax(weights, known, train[1], penalty)
        with torch.no_grad():
            score = _accuracy(held @ weights[:-1] + weights[-1], validation[1])
            if score > best:
                best, answer = score, _accuracy(asked @ weights[:-1] + weights[-1], test[1])
    return answer


def _fit_softmax(weights: Tensor, features: Tensor, labels: Tensor, penalty: float) -> None:
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = features @ weights[:-1] + weights[-1]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss = loss + penalty / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def knn_probe(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, k: int = 20, temperature: float = 0.07
) -> float:
    """Return the test accuracy of the k nearest neighbours by cosine, weighted by `exp(cosine / temperature)`."""
    known, asked = (torch.nn.functional.normalize(part[0].double(), dim=1) for part in (train, test))
    near = (asked @ known.T).topk(min(k, len(known)), dim=1)
    classes = int(max(train[1].max(), test[1].max())) + 1
    votes = torch.zeros(len(asked), classes, dtype=torch.float64)
    votes.scatter_add_(1, train[1][near.indices], (near.values / temperature).exp())
    return _accuracy(votes, test[1])


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).double().mean())
