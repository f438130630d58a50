"""Observations to profile on: from a file of the user's, or from demonstrations of the testbed."""

from pathlib import Path

import numpy as np
import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.models import testbed
from noiseworks.kits.policies.chunking import windows
from noiseworks.kits.policies.native import NativePolicy
from noiseworks.kits.policies.options import TABLETOP
from torch import Tensor

TUNING_SEEDS = 1000


def load_observations(data: str | Path, policy: NativePolicy, count: int, seed: int) -> dict[str, Tensor]:
    """Return observations {`obs`: [count, To, Do]}, drawn without replacement.

    Args:
        data: `tabletop`, or an NPZ file whose array `obs` is [n, To, Do].
        policy: The policy that they are for.
        count: How many.
        seed: Which ones; below 1000, as judging seeds are not profiled on.

    Raises:
        InputError: When the data or a number is unfit.
    """
    check_number("observations", count, low=1, integer=True)
    check_number("seed", seed, low=0, high=TUNING_SEEDS - 1, integer=True)
    found = _demonstrated(policy, count) if str(data) == TABLETOP else _read(Path(data))
    expected = (policy.n_obs_steps, policy.config.obs_dim)
    if found.shape[1:] != expected:
        raise InputError(f"{data} holds observations {found.shape[1:]}, the policy reads {expected}")
    if len(found) < count:
        raise InputError(f"{data} holds {len(found)} observations, fewer than the {count} asked for")
    rows = np.random.default_rng(seed).permutation(len(found))[:count]
    return {"obs": torch.from_numpy(found[rows])}


def _demonstrated(policy: NativePolicy, count: int) -> np.ndarray:
    return windows(testbed(TABLETOP, needs="bac").demonstrations(max(1, -(-count // 12))), policy.chunk)[
        "obs"
    ].numpy()


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"no observations at {path}: name an NPZ file with an array `obs`, or {TABLETOP}")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = np.asarray(file["obs"], np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} holds no array `obs` [n, To, Do] ({error})") from error
    if found.ndim != 3 or not np.isfinite(found).all():
        raise InputError(f"`obs` of {path} must be finite and [n, To, Do], got shape {found.shape}")
    return found
