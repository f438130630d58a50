"""Testbed `digits`: the 8x8 handwritten digits that scikit-learn bundles."""

import numpy as np
from noiseworks.core.checks import check_choice

SPLITS = ("train", "test")
TRAIN_SIZE = 1437


def load(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Return the digits of one split: 1437 to train and 360 to test, always the same ones.

    Args:
        split: `train` or `test`.

    Returns:
        Images float32 [n, 8, 8, 1] in [-1, 1] and labels int64 [n] in 0..9.

    Raises:
        InputError: When the split is unknown.
    """
    from sklearn.datasets import load_digits

    check_choice("split", split, SPLITS)
    bunch = load_digits()
    images = (bunch.images / 8.0 - 1.0).astype(np.float32)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    chosen = order[:TRAIN_SIZE] if split == "train" else order[TRAIN_SIZE:]
    return images[chosen], bunch.target[chosen].astype(np.int64)
