"""Which concept conditions the next step: the paper's rule and what it is compared with.

A policy has no memory: all that it may know of a run is in `Step`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import torch
from noiseworks.black_scholes.options import Pricing
from noiseworks.black_scholes.pricing import LEAST_SPOT, call_price
from noiseworks.core.errors import InputError
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """What a policy sees before a step.

    Attributes:
        index: The step that is to be conditioned, 0 for the noisiest.
        num_steps: Steps of the run, N.
        concepts: M concepts of each of B samples.
        scores: Matches so far, float64 [k, B, M] on the 0-100 scale, the latest last; None before the first.
        scored: The step whose forecast was scored last.
        sigma: Volatility of the scheduler at that step.
    """

    index: int
    num_steps: int
    concepts: Sequence[Sequence[str]]
    scores: Tensor | None = None
    scored: int = 0
    sigma: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(B, M)."""
        return len(self.concepts), len(self.concepts[0])


class BlendPolicy(Protocol):
    """Chooses the weights of concepts.

    Attributes:
        watches: Whether it needs scores; else nothing is decoded.
    """

    watches: bool

    def weights(self, step: Step) -> Tensor:
        """Return the weights of the concepts, [B, M], one-hot for a hard choice."""
        ...


def one_hot(choice: Tensor, count: int) -> Tensor:
    """Return one-hot weights [B, M] of choices [B]."""
    return torch.nn.functional.one_hot(choice, count).double()


def lowest(values: Tensor) -> Tensor:
    """Return the index of the smallest value of each row [B, M]; of equal ones the last, as in the released code."""
    return values.shape[1] - 1 - values.flip(1).argmin(1)


def _first(step: Step) -> Tensor:
    batch, count = step.shape
    return one_hot(torch.zeros(batch, dtype=torch.int64), count)


@dataclass(frozen=True)
class BlackScholes:
    """The paper's rule: the concept whose call is cheapest conditions the next step.

    With one strike for all concepts, the price rises with the score alone, so the choice is that of `ClipMin`. Strikes
    of each concept's own, or a measured volatility, are where pricing says more; both are ours.

    Attributes:
        pricing: Settings.
        strikes: Concept -> strike; concepts that are not in it have the settings' one.
    """

    pricing: Pricing = field(default_factory=Pricing)
    strikes: Mapping[str, float] = field(default_factory=dict)
    watches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse strikes that are not above 0."""
        for concept, strike in self.strikes.items():
            if not 0 < strike < float("inf"):
                raise InputError(f"the strike of {concept!r} must be above 0, got {strike}")

    def weights(self, step: Step) -> Tensor:
        """Return one-hot weights of the cheapest concept, or softmin weights; the first concept before any score."""
        if step.scores is None:
            return _first(step)
        prices, settings = self.prices(step), self.pricing
        if settings.choice == "min" or settings.kappa == 0:
            return one_hot(lowest(prices), step.shape[1])
        if settings.price == "released-density":
            return torch.softmax(-prices / settings.kappa, 1)
        best = prices.clamp(min=-1e4)  # prices of 0 are equal
        return torch.softmax(-best / settings.kappa, 1)

    def prices(self, step: Step) -> Tensor:
        """Return ln C of each concept, [B, M]; the plain price for "released-density".

        Args:
            step: With scores.
        """
        settings = self.pricing
        strikes = [[self.strikes.get(text, settings.strike) for text in row] for row in step.concepts]
        sigma: Tensor | float = step.sigma
        if settings.window:
            sigma = realised_volatility(step.scores, settings.window).clamp(min=step.sigma)
        return call_price(
            step.scores[-1],
            torch.tensor(strikes, dtype=torch.float64, device=step.scores.device),
            1 / step.num_steps,
            sigma,
            step.num_steps - step.scored,
            kind=settings.price,
            log=settings.price == "cdf",
        )


def realised_volatility(scores: Tensor, window: int) -> Tensor:
    """Return the deviation of the log returns of the last scores, [B, M]; 0 of fewer than three scores.

    Args:
        scores: [k, B, M].
        window: How many of the last returns count, at least 2.
    """
    returns = scores.clamp(min=LEAST_SPOT).log().diff(dim=0)[-window:]
    return returns.std(0) if len(returns) > 1 else torch.zeros_like(scores[-1])


@dataclass(frozen=True)
class ClipMin:
    """The concept that matches worst conditions the next step.

    As in the paper by the score itself, so a score below 0 is the worst. The released code compares absolute values,
    by which a concept whose opposite is shown counts as shown; for scores of at least 0 both choose alike.
    """

    watches: ClassVar[bool] = True

    def weights(self, step: Step) -> Tensor:
        """Return one-hot weights of the lowest score."""
        return _first(step) if step.scores is None else one_hot(lowest(step.scores[-1]), step.shape[1])


@dataclass(frozen=True)
class Alternating:
    """Concept i mod M in step i."""

    watches: ClassVar[bool] = False

    def weights(self, step: Step) -> Tensor:
        """Return one-hot weights of the step's turn."""
        batch, count = step.shape
        return one_hot(torch.full((batch,), step.index % count), count)


@dataclass(frozen=True)
class StepSwitch:
    """The first concept, then the others in turn, then the first again (prompt mixing).

    The reference's 7 and 17 of 50 steps.

    Attributes:
        starts: Share of the steps at which the next concept takes over; behind the last one the first one returns.
    """

    starts: tuple[float, ...] = (0.14, 0.34)
    watches: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse shares that do not rise from 0 to 1."""
        if not self.starts or list(self.starts) != sorted(self.starts) or not 0 <= self.starts[0] <= 1:
            raise InputError(f"starts must rise within 0 to 1, got {self.starts}")
        if self.starts[-1] > 1:
            raise InputError(f"starts must rise within 0 to 1, got {self.starts}")

    def weights(self, step: Step) -> Tensor:
        """Return one-hot weights of the concept whose turn it is."""
        batch, count = step.shape
        passed = sum(step.index >= round(share * step.num_steps) for share in self.starts)
        return one_hot(torch.full((batch,), passed % count), count)


@dataclass(frozen=True)
class Linear:
    """The same blend of embeddings in all steps.

    Attributes:
        shares: One a concept, summing to 1; empty for equal ones.
    """

    shares: tuple[float, ...] = ()
    watches: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse shares that are no shares."""
        if self.shares and (min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6):
            raise InputError(f"shares must be at least 0 and sum to 1, got {self.shares}")

    def weights(self, step: Step) -> Tensor:
        """Return the shares for every sample.

        Raises:
            InputError: When there are other numbers of shares and concepts.
        """
        batch, count = step.shape
        shares = self.shares or (1 / count,) * count
        if len(shares) != count:
            raise InputError(f"{count} concepts need as many shares, got {self.shares}")
        return torch.tensor(shares, dtype=torch.float64).expand(batch, count)


def named_policy(name: str, pricing: Pricing, strikes: Mapping[str, float] | None = None) -> BlendPolicy:
    """Return a policy by its name on the command line, one of `options.POLICIES`.

    Raises:
        InputError: When there is none of this name.
    """
    if name in ("bs", "softmin"):
        chosen = replace(pricing, choice="softmin") if name == "softmin" else pricing
        return BlackScholes(chosen, dict(strikes or {}))
    known = {"clip-min": ClipMin, "alternating": Alternating, "switch": StepSwitch, "linear": Linear}
    if name not in known:
        raise InputError(f"no policy {name!r}; there are bs, softmin, {', '.join(known)}")
    return known[name]()
