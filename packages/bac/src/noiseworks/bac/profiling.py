"""The offline profile: how alike each block's outputs are at every pair of denoising steps (section 3.2).

An ordinary denoising run is recorded as the network's inputs only. Each observation's K calls are then one batch
of K rows, so a block's outputs at all steps exist together for as long as its matrices are computed, and no
other block's do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.bac.attaching import attach
from noiseworks.bac.hosts import Stack, eager_parts, find_stack
from noiseworks.bac.options import METRICS, Metric
from noiseworks.bac.plan import CachePlan, layer_of
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.checks import check_choice, check_finite, check_number
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits import attachments
from noiseworks.kits.policies.protocols import Generators, Obs
from noiseworks.kits.policies.replanning import DiffusionPolicy
from noiseworks.kits.policies.schedulers import Solver
from torch import Tensor

PROFILE_KIND = "bac/profile"
Call = tuple[tuple, dict]


@dataclass(frozen=True)
class FeatureProfile:
    """What was measured of a policy's blocks, averaged over observations.

    Attributes:
        blocks: Names of the blocks in order.
        matrices: Metric -> float64 [num_blocks, K, K]: cosine similarities, or distances.
        volatility: Mean absolute change between two steps, over all pairs of them, float64 [num_blocks].
        times: The network's time argument at each step, float64 [K].
        observations: How many observations were averaged.
        fingerprint: Of the network.
        calls_per_step: Network calls of a step, averaged like observations.
        settings: What it was measured with, for the record.
    """

    blocks: tuple[str, ...]
    matrices: Mapping[str, np.ndarray]
    volatility: np.ndarray
    times: np.ndarray
    observations: int
    fingerprint: str
    calls_per_step: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """K."""
        return len(self.times)

    @property
    def ascending(self) -> bool:
        """Whether the time argument grows along the steps."""
        return bool(self.times[-1] > self.times[0])

    @property
    def kinds(self) -> list[str]:
        """Kind of each block."""
        return [name.rpartition(".")[2] for name in self.blocks]

    @property
    def layers(self) -> list[int]:
        """Layer of each block."""
        return [layer_of(name) for name in self.blocks]

    def matrix(self, block: str, metric: Metric = "cosine") -> np.ndarray:
        """Return a block's matrix [K, K].

        Raises:
            InputError: When the block or the metric was not profiled.
        """
        check_choice("block", block, self.blocks)
        if metric not in self.matrices:
            raise InputError(
                f"the profile holds the metrics {', '.join(self.matrices)}, not {metric!r}; profile with it"
            )
        return self.matrices[metric][self.blocks.index(block)]

    def merged(self, other: "FeatureProfile") -> "FeatureProfile":
        """Return the average with a profile of other observations of the same policy.

        Raises:
            InputError: When policy, steps, metrics or settings (the solver) differ.
        """
        same = (self.fingerprint, self.calls_per_step, self.settings) == (
            other.fingerprint,
            other.calls_per_step,
            other.settings,
        )
        same = same and np.array_equal(self.times, other.times)
        if not same or set(self.matrices) != set(other.matrices):
            raise InputError("profiles of another policy, other steps, metrics or settings cannot be merged")
        total = self.observations + other.observations

        def mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return (a * self.observations + b * other.observations) / total

        matrices = {name: mean(value, other.matrices[name]) for name, value in self.matrices.items()}
        volatility = mean(self.volatility, other.volatility)
        return replace(self, matrices=matrices, volatility=volatility, observations=total)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the profile's directory atomically."""
        config = {
            "blocks": list(self.blocks),
            "observations": self.observations,
            "fingerprint": self.fingerprint,
            "calls_per_step": self.calls_per_step,
            "settings": self.settings,
        }
        tensors = {f"matrix.{name}": torch.from_numpy(value) for name, value in self.matrices.items()}
        tensors |= {"volatility": torch.from_numpy(self.volatility), "times": torch.from_numpy(self.times)}
        save_artifact(path, PROFILE_KIND, config, tensors)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "FeatureProfile":
        """Read a profile's directory.

        Raises:
            ArtifactError: When it is missing, corrupt or no profile.
        """
        config, tensors = load_artifact(path, PROFILE_KIND)
        arrays = {name: value.numpy() for name, value in tensors.items()}
        matrices = {n.removeprefix("matrix."): v for n, v in arrays.items() if n.startswith("matrix.")}
        if not matrices or not matrices.keys() <= set(METRICS):
            raise ArtifactError(f"{path} holds no profile of {', '.join(METRICS)}; profile the policy again")
        try:
            blocks = tuple(config.pop("blocks"))
            return cls(blocks, matrices, arrays["volatility"], arrays["times"], **config)
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{path} holds no profile ({error}); profile the policy again") from error


def profile(
    policy: Any,
    observations: Obs | None = None,
    *,
    num_steps: int | None = None,
    solver: Solver = "ddpm",
    metrics: Sequence[Metric] = ("cosine",),
    generator: Generators = None,
    run: Callable[[], object] | None = None,
    calls_per_step: int = 1,
) -> FeatureProfile:
    """Measure how alike the outputs of each block are along ordinary denoising runs.

    Args:
        policy: A policy or host; a network when `run` is given.
        observations: The host's observations, tensors [n, To, ...]; one run each, averaged.
        num_steps: K; by default all steps of the training.
        solver: `ddpm` or `ddim`.
        metrics: Of `cosine`, `mse`, `l1`, `l2` and `wasserstein`.
        generator: Noise of the runs.
        run: Performs the runs in place of the host's sampler: one batched replan of a policy with a sampler of
            its own.
        calls_per_step: How often `run` calls the network in each step. Calls that are left out of the last step,
            as with Heun's solver, leave out their place in all steps.

    Raises:
        InputError: When a metric is unknown, or there is neither a host with observations nor `run`.
        NonFiniteError: When a block's output is not finite.
    """
    for name in metrics:
        check_choice("metrics", name, METRICS)
    stack = find_stack(policy)
    calls = record_calls(stack, run or _host_run(stack, observations, num_steps, solver, generator))
    check_number("calls_per_step", calls_per_step, low=1, high=len(calls), integer=True)
    rows, steps = len(calls[0][0][0]), -(-len(calls) // calls_per_step)
    series = [calls[first::calls_per_step] for first in range(calls_per_step)]
    series = [one for one in series if len(one) == steps]
    blocks = stack.blocks
    matrices = {name: np.zeros((len(blocks), steps, steps)) for name in metrics}
    volatility = np.zeros(len(blocks))

    def observe(_: int, block: int, output: Tensor) -> None:
        check_finite(f"the output of {blocks[block]}", output)
        features = output.flatten(1).double()
        for name in metrics:
            matrices[name][block] += compare(features, name).cpu().numpy()
        volatility[block] += mean_change(features)

    once = CachePlan.uniform(blocks, 1, 1)
    with torch.inference_mode(), attach(policy, once, fused=False, observer=observe) as handle:
        for row in range(rows):
            for one in series:
                handle.restart()
                args, kwargs = _batched(one, row, rows)
                stack.network(*args, **kwargs)
    times = np.array([_time(call) for call in series[0]], np.float64)
    count = rows * len(series)
    mean = {name: value / count for name, value in matrices.items()}
    settings = {"num_steps": steps, "solver": solver if run is None else "own"}
    return FeatureProfile(
        blocks, mean, volatility / count, times, rows, stack.fingerprint(), calls_per_step, settings
    )


def record_calls(stack: Stack, run: Callable[[], object]) -> list[Call]:
    """Return the arguments of every call of the network that `run` makes.

    Raises:
        InputError: When it makes none.
    """
    calls: list[Call] = []

    def keep(_: Any, args: tuple, kwargs: dict) -> None:
        calls.append((tuple(map(_copy, args)), {name: _copy(value) for name, value in kwargs.items()}))

    hook = stack.network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        # Compiled calls run no hooks that came later.
        with attachments.attach("bac recording", eager_parts(stack)), torch.inference_mode():
            run()
    finally:
        hook.remove()
    if not calls:
        raise InputError("the run called the network not once; pass a run that plans with this policy")
    return calls


def compare(features: Tensor, metric: Metric) -> Tensor:
    """Return the matrix [K, K] of a block's flattened outputs [K, n] in float64.

    `cosine` has cos(0, 0) = 1 and cos(0, x) = 0; `mse` and `l1` are means over elements, `l2` is the Euclidean
    distance; `wasserstein` moves |x|, scaled to sum 1, along the flattened elements.
    """
    if metric == "cosine":
        norms = features.norm(dim=1)
        zero = norms == 0
        unit = features / torch.where(zero, 1.0, norms)[:, None]
        return torch.where(zero[:, None] & zero, 1.0, unit @ unit.T)
    if metric == "wasserstein":
        mass = features.abs()
        features = (mass / mass.sum(1, keepdim=True).clamp_min(1e-300)).cumsum(1)
    distance = torch.cdist(features, features, p=1 if metric in ("l1", "wasserstein") else 2)
    if metric == "mse":
        return distance**2 / features.shape[1]
    return distance if metric == "l2" else distance / features.shape[1]


def mean_change(features: Tensor) -> float:
    """Return the volatility: mean over pairs of steps i < j of the mean of |b_i - b_j| over elements."""
    check_number("steps", len(features), low=1, integer=True)
    if len(features) == 1:
        return 0.0
    return float(torch.nn.functional.pdist(features, p=1).mean()) / features.shape[1]


def _host_run(
    stack: Stack, observations: Obs | None, num_steps: int | None, solver: Solver, generator: Generators
) -> Callable[[], object]:
    if stack.host is None or observations is None:
        raise InputError("pass a policy with its observations, or `run`, which plans with the policy once")
    host = stack.host
    sampler = DiffusionPolicy(host, solver=solver, num_inference_steps=num_steps)
    rows = len(next(iter(observations.values())))
    check_number("number of observations", rows, low=1, integer=True)
    return lambda: sampler.plan(host.encode(observations), None, generator, rows)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _batched(calls: Sequence[Call], row: int, rows: int) -> Call:
    """Return the calls of one row of the batch as one call with a row for each."""
    args = [_joined([call[0][i] for call in calls], row, rows) for i in range(len(calls[0][0]))]
    kwargs = {name: _joined([call[1][name] for call in calls], row, rows) for name in calls[0][1]}
    return tuple(args), kwargs


def _joined(values: Sequence[Any], row: int, rows: int) -> Any:
    first = values[0]
    if isinstance(first, Tensor) and first.ndim and len(first) == rows:
        return torch.cat([value[row : row + 1] for value in values])
    if isinstance(first, bool) or not isinstance(first, Tensor | int | float):
        return first
    return torch.stack([torch.as_tensor(value).reshape(()) for value in values])


def _time(call: Call) -> float:
    args, kwargs = call
    value = args[1] if len(args) > 1 else next(iter(kwargs.values()))
    return float(torch.as_tensor(value).reshape(-1)[0])
