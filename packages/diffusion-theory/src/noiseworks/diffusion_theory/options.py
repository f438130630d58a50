"""The options of diffusion-theory, its experiments' names and sizes; nothing heavy is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most, below

SizeName = Literal["smoke", "quick", "laptop", "paper"]
# Experiment -> what the theory says.
STATEMENTS: Mapping[str, str] = MappingProxyType(
    {
        "E1": "With the exact score, the error of N steps falls like 1/N (SDE, Euler) and 1/N² (Heun).",
        "E2a": "The subspace is found at rate 1/n, with an error of 2d(D - d)h/((1 - h)² n).",
        "E2b": "The memorising score's error falls more slowly in n the larger the intrinsic dimension; D has no part.",
        "E2c": "A network's score error falls with n, and is larger for more intrinsic dimensions.",
        "E3": "Stopping early trades bias for variance: the best t_0 lies inside, and shrinks with n.",
        "E4": "Guidance raises the posterior on every path and lowers the entropy; too much splits a class in two.",
        "E5": "Reward-directed sampling falls short of its target less with more labels, and more with higher targets.",
        "E6": "Look-ahead gradient guidance stays on the data's subspace, naive gradients leave it.",
        "E7": "The exact minimiser of the training loss reproduces its training points as t_0 -> 0.",
    }
)
TRAINED = ("E2c",)  # trains networks: not part of `all`


@dataclass(frozen=True)
class Size:
    """How large the experiments are.

    Attributes:
        seeds: Repetitions of what is random.
        paths: Coupled starts in E4.
        samples: Samples and test points.
        largest: Largest number of training points in E2b and E3.
        repeats: Data sets in E5.
        rounds: Of optimisation in E6.
        steps: Of a sampler.
    """

    seeds: int
    paths: int
    samples: int
    largest: int
    repeats: int
    rounds: int
    steps: int


SIZES: Mapping[SizeName, Size] = MappingProxyType(
    {
        "smoke": Size(seeds=2, paths=200, samples=100, largest=1000, repeats=20, rounds=4, steps=20),
        "quick": Size(seeds=4, paths=1000, samples=300, largest=4000, repeats=200, rounds=60, steps=40),
        "laptop": Size(seeds=8, paths=10_000, samples=500, largest=4000, repeats=400, rounds=100, steps=50),
        "paper": Size(
            seeds=16, paths=10_000, samples=2000, largest=16_000, repeats=1000, rounds=1000, steps=200
        ),
    }
)


@dataclass(frozen=True)
class Study(Options):
    """Which experiments run, and how large.

    Attributes:
        experiment: E1, E2a, E2b, E2c, E3 to E7, or all (without E2c, which trains networks).
        size: smoke, quick, laptop or paper.
        seed: Of everything random.
    """

    experiment: str = "all"
    size: SizeName = "quick"
    seed: Annotated[int, at_least(0), below(2**31)] = 0

    def names(self) -> tuple[str, ...]:
        """Return the experiments.

        Raises:
            InputError: On an unknown name.
        """
        if self.experiment == "all":
            return tuple(name for name in STATEMENTS if name not in TRAINED)
        if self.experiment not in STATEMENTS:
            raise InputError(f"unknown experiment {self.experiment!r}; use {', '.join(STATEMENTS)} or all")
        return (self.experiment,)


@dataclass(frozen=True)
class Diagnosis(Options):
    """How a user's data are diagnosed.

    Attributes:
        tolerance: Divergence (KL, in nats) that start and discretisation may each cost.
        horizon: Length T of the forward process.
        t0: Early stop.
        largest: Points of the learning curve at most.
        seed: Of subsets and noise.
    """

    tolerance: Annotated[float, above(0), at_most(10)] = 0.05
    horizon: Annotated[float, above(0), at_most(100)] = 10.0
    t0: Annotated[float, above(1e-8), below(1)] = 1e-3
    largest: Annotated[int, at_least(64)] = 8000
    seed: Annotated[int, at_least(0), below(2**31)] = 0

    def check(self) -> None:
        """Refuse a process that ends before it stops.

        Raises:
            InputError: When t0 is not below the horizon.
        """
        if self.t0 >= self.horizon:
            raise InputError(f"t0 must be below horizon ({self.horizon}), got {self.t0}")


@dataclass(frozen=True)
class Proposal(Options):
    """What is proposed for a target reward.

    Attributes:
        target: The reward that is asked for.
        n: Proposals.
        dimension: Of the subspace; by default as many directions as hold 99 % of the variance.
        penalty: Of ridge regression.
        label_noise: Standard deviation of the noise on pseudo-labels.
        t0: Early stop: the variance of proposals off the subspace.
        seed: Of the proposals.
    """

    target: float
    n: Annotated[int, at_least(1)] = 16
    dimension: Annotated[int | None, at_least(1)] = None
    penalty: Annotated[float, above(0)] = 1.0
    label_noise: Annotated[float, above(0)] = 0.1
    t0: Annotated[float, at_least(0), below(1)] = 0.0
    seed: Annotated[int, at_least(0), below(2**31)] = 0
