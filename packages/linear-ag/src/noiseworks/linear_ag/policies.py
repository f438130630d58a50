"""Guidance policies: Adaptive Guidance and the fixed rules that it is compared with."""

import math
from dataclasses import dataclass, field

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.linear_ag.guidance import SPACES, Action, GuidanceState
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RunSettings:
    """What a policy may depend on, known at the first call of a run.

    Attributes:
        num_steps: T.
        guidance_scale: s, or None when the host does not say.
        scheduler: Class and configuration of the scheduler, as text.
        model: Class and number of parameters of the denoiser.
        checksum: Mean magnitude of the denoiser's first weight.
        sample_shape: Shape of one sample's latents.
        uncond: The unconditional (negative prompt's) embedding, averaged over tokens, `[width]`, or None.
    """

    num_steps: int
    guidance_scale: float | None
    scheduler: str
    model: str
    checksum: float
    sample_shape: tuple[int, ...]
    uncond: Tensor | None


@dataclass(frozen=True)
class GuidancePolicy:
    """Decides per step and sample what is evaluated. Subclasses implement `decide`; a policy keeps no state.

    Attributes:
        space: The vectors whose similarity is recorded (and used, by Adaptive Guidance); one of `SPACES`.
    """

    space: str = field(default="auto", kw_only=True)

    def __post_init__(self):
        check_choice("space", self.space, SPACES)

    def decide(self, step: int, state: GuidanceState) -> Tensor:
        """Return the actions of a step, int64 `[B]`.

        Args:
            step: k, 0 for the noisiest.
            state: What has happened before this step.
        """
        raise NotImplementedError

    def strength(self, step: int) -> float:
        """Return the factor on the host's guidance excess s - 1 at a step."""
        return 1.0

    def check_run(self, settings: RunSettings) -> None:
        """Refuse a run that the policy was not made for; called before its first evaluation.

        Raises:
            InputError: Naming what differs.
        """

    @property
    def reuses(self) -> bool:
        """Whether some step adds the last measured difference again."""
        return False

    @property
    def retention(self) -> float:
        """Factor on a reused difference for each step since it was measured."""
        return 1.0

    @property
    def history(self) -> int:
        """Number of first steps whose predictions must be kept for `estimate`."""
        return 0

    def estimate(self, step: int, cond: Tensor, uncond: Tensor) -> Tensor:
        """Return the unconditional prediction of a step from past ones; only asked for LINEAR actions.

        Args:
            step: k.
            cond: Conditional predictions of steps 0..k, `[k + 1, B, ...]`.
            uncond: Unconditional predictions (or what took their place) of steps 0..k-1, `[k, B, ...]`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class AdaptiveGuidance(GuidancePolicy):
    """Adaptive Guidance (AG): guide until the two predictions agree, then use only the conditional one.

    A sample converges at the first step k with gamma_k >= threshold. That step still uses guidance, since
    both predictions are there; from k + 1 on the unconditional one is skipped. A sample that converges at k
    costs 2 (k + 1) + (T - k - 1) evaluations. For InstructPix2Pix the chain shrinks 3 -> 2 -> 1:
    (text+image, image) first, then (image, neither).

    Attributes:
        threshold: gamma-bar. It depends on model, steps, space and size: use `calibrate`. Above 1 means
            never.
        space: "x_minus_eps" (the authors' scripts), "x0", "eps", or "auto": "x0" on flow models,
            "x_minus_eps" on others.
        per_sample: Decide for each sample; otherwise the whole batch converges together, on its smallest
            gamma.
        min_step: No convergence before this step; None means 0, and T / 4 in "eps" space, where gamma
            starts near 1.
        sticky: Once converged, always converged. Otherwise one step is skipped at a time and then measured
            again.
        armed: Count a gamma above the threshold only after one below it.
        start: Fraction of the steps, from the noisiest, that run without guidance before anything else
            ("CFG start").
        decay: Beyond the paper: what becomes of the last measured difference after convergence. j steps
            later the sample is still guided by decay^j of it, at no evaluation. 0 drops it at once, as the
            paper does; 1 keeps it whole.
    """

    threshold: float = 0.99
    per_sample: bool = True
    min_step: int | None = None
    sticky: bool = True
    armed: bool = False
    start: float = 0.0
    decay: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_number("decay", self.decay, low=0.0, high=1.0)
        check_number("threshold", self.threshold, low=-1.0)
        if self.min_step is not None:
            check_number("min_step", self.min_step, low=0, integer=True)
        check_number("start", self.start, low=0.0, high=1.0)

    def decide(self, step: int, state: GuidanceState) -> Tensor:
        """Return CFG for samples that have not converged, PAIR in between, COND or REUSE for those that have."""
        if step < round(self.start * state.num_steps):
            return torch.full((state.batch,), Action.COND)
        converged = self.converged(state.gamma[self.first_step(state.num_steps) : step])
        actions = torch.full((state.batch,), Action.CFG)
        actions[converged[:, 0]] = Action.PAIR
        actions[converged.all(dim=1)] = Action.REUSE if self.decay else Action.COND
        return actions

    @property
    def reuses(self) -> bool:
        """Whether differences are kept: with a decay above 0."""
        return self.decay > 0

    @property
    def retention(self) -> float:
        """The decay."""
        return self.decay

    def converged(self, gamma: Tensor) -> Tensor:
        """Return which pairs of predictions agree, bool `[B, pairs]`.

        Args:
            gamma: Similarities of the steps that count, `[k, B, pairs]`, NaN where not measured.
        """
        steps, batch, pairs = gamma.shape
        if not steps:
            return torch.zeros(batch, pairs, dtype=torch.bool)
        if not self.per_sample:
            gamma = gamma.nan_to_num(nan=math.inf).amin(dim=1, keepdim=True).expand_as(gamma)
            gamma = torch.where(gamma.isinf(), math.nan, gamma)
        hit = gamma >= self.threshold
        if self.armed:
            hit &= (gamma < self.threshold).cumsum(dim=0) > 0
        return hit.any(dim=0) if self.sticky else hit[-1]

    def first_step(self, num_steps: int) -> int:
        """Return the first step at which a sample may converge."""
        if self.min_step is not None:
            return self.min_step
        return num_steps // 4 if self.space == "eps" and not self.armed else 0


@dataclass(frozen=True)
class FixedPolicy(GuidancePolicy):
    """The same actions in every run: a text with one digit a step, as in `Action`.

    `"2" * 10 + "1" * 10` is ten guided and ten conditional steps, 30 evaluations.

    Attributes:
        actions: One digit of 0 (uncond), 1 (cond), 2 (CFG), 4 (reuse the last difference) a step; 5 drops
            only the image-only prediction of InstructPix2Pix.
        strengths: One factor on the host's s - 1 a step, or empty for 1 everywhere.
    """

    actions: str = ""
    strengths: tuple[float, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not self.actions or set(self.actions) - set("01245"):
            raise InputError(f"a policy has one digit of 0, 1, 2, 4 or 5 a step, got {self.actions!r}")
        if "4" in self.actions and "2" not in self.actions.partition("4")[0]:
            raise InputError(f"policy {self.actions!r} reuses a difference (4) before a guided step (2)")
        if self.strengths and len(self.strengths) != len(self.actions):
            raise InputError(f"a policy of {len(self.actions)} steps got {len(self.strengths)} strengths")

    @property
    def nfe(self) -> int:
        """Network evaluations of a run with two predictions a guided step."""
        return sum(2 if digit in "25" else 1 for digit in self.actions)

    @classmethod
    def from_traces(cls, gamma: Tensor, threshold: float, space: str = "auto") -> "FixedPolicy":
        """Return the authors' offline rule: guide until every prompt has converged for good.

        Per prompt, take the first step of the last uninterrupted run of gamma > threshold; then the maximum
        over prompts is the number of guided steps.

        Args:
            gamma: Similarities of fully guided runs, `[T, n]`.
            threshold: gamma-bar.
            space: The space in which gamma was measured, kept for the record.
        """
        above = gamma > threshold
        tail = above.flip(0).cumprod(dim=0).sum(dim=0)
        guided = int((gamma.shape[0] - tail).max())
        return cls(actions="2" * guided + "1" * (gamma.shape[0] - guided), space=space)

    def check_run(self, settings: RunSettings) -> None:
        """Refuse a run of another length.

        Raises:
            InputError: Naming both lengths.
        """
        if settings.num_steps != len(self.actions):
            raise InputError(f"the policy has {len(self.actions)} steps, this run has {settings.num_steps}")

    @property
    def reuses(self) -> bool:
        """Whether the text holds a 4."""
        return "4" in self.actions

    def decide(self, step: int, state: GuidanceState) -> Tensor:
        """Return the action of a step for every sample."""
        return torch.full((state.batch,), int(self.actions[step]))

    def strength(self, step: int) -> float:
        """Return the factor on the host's s - 1 at a step."""
        return self.strengths[step] if self.strengths else 1.0


@dataclass(frozen=True)
class IntervalGuidance(GuidancePolicy):
    """Guidance inside an interval of the steps only: limited-interval guidance, StepAG (arXiv 2506.08351).

    StepAG is the first fraction p of the steps: `IntervalGuidance(stop=p)`.

    Attributes:
        start: Fraction of the steps, from the noisiest, after which guidance begins.
        stop: Fraction after which it ends.
    """

    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_number("start", self.start, low=0.0, high=1.0)
        check_number("stop", self.stop, low=self.start, high=1.0)

    def decide(self, step: int, state: GuidanceState) -> Tensor:
        """Return CFG inside the interval, COND outside."""
        inside = round(self.start * state.num_steps) <= step < round(self.stop * state.num_steps)
        return torch.full((state.batch,), Action.CFG if inside else Action.COND)


@dataclass(frozen=True)
class ReuseGuidance(GuidancePolicy):
    """Guidance at every n-th step; in between the last difference is used: e_c + (s - 1) (e_c - e_u)_last.

    Attributes:
        every: n.
        warm: Fraction of the steps, from the noisiest, that are all guided before.
    """

    every: int = 2
    warm: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_number("every", self.every, low=1, integer=True)
        check_number("warm", self.warm, low=0.0, high=1.0)

    @property
    def reuses(self) -> bool:
        """Whether differences are kept: always."""
        return True

    def decide(self, step: int, state: GuidanceState) -> Tensor:
        """Return CFG at first and at every n-th step from there, REUSE in between."""
        later = step - round(self.warm * state.num_steps)
        return torch.full((state.batch,), Action.REUSE if later > 0 and later % self.every else Action.CFG)


def alternating(num_steps: int) -> FixedPolicy:
    """Return the naive policy that guides every second step and drops guidance in between."""
    return FixedPolicy(actions="".join("12"[k % 2 == 0] for k in range(num_steps)))
