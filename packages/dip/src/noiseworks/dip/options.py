"""The options of the commands; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most, below
from noiseworks.kits.training.options import Fit

Way = Literal["inpainting", "control", "pure", "direct", "dip"]
WAYS: tuple[Way, ...] = ("inpainting", "control", "pure", "direct", "dip")
ACTIONS = ("walk", "sit", "lie")


@dataclass(frozen=True)
class Architecture(Options):
    """Sizes of the motion model; the defaults are the testbed's, the paper's are 512, 8, 4, 1024 and dropout 0.1.

    Attributes:
        width: Channels of a token, a multiple of the heads and even.
        layers: Transformer layers, of the base and of the control branch.
        heads: Attention heads.
        feedforward: Channels inside a layer's feed-forward block.
        dropout: In training.
    """

    width: Annotated[int, at_least(8)] = 80
    layers: Annotated[int, at_least(1)] = 4
    heads: Annotated[int, at_least(1)] = 4
    feedforward: Annotated[int, at_least(8)] = 160
    dropout: Annotated[float, at_least(0), below(1)] = 0.0

    def check(self) -> None:
        """Refuse a width that heads or the position table cannot share.

        Raises:
            InputError: Naming the width.
        """
        if self.width % self.heads or self.width % 2:
            raise InputError(f"width must be even and a multiple of heads ({self.heads}), got {self.width}")


@dataclass(frozen=True)
class Clipset(Options):
    """What a model learns from: synthetic clips, or motions of the user's.

    Attributes:
        clips: Number of synthetic clips.
        clip_seed: Of the synthetic clips.
        kinds: Which of the synthetic clips, with commas between.
        data: .npz file of `motion` [N, F, 69] in local frames and `actions` [N] (0 walk, 1 sit, 2 lie) instead.
    """

    clips: Annotated[int, at_least(1)] = 4000
    clip_seed: Annotated[int, at_least(0)] = 0
    kinds: str = "walk,turn,stand,sit,stand_up,lie"
    data: str | None = None


@dataclass(frozen=True)
class Fitting(Fit):
    """Length and rate of a training run.

    Attributes:
        learning_rate: Peak of AdamW's rate; it rises over the first steps and falls along a cosine.
        ema_decay: Of the average of the weights that is kept.
        tuned: What the second stage trains: all weights, as in the paper, or the branch alone.
    """

    batch_size: Annotated[int, at_least(1)] = 16
    max_steps: Annotated[int, at_least(1)] = 6000
    learning_rate: Annotated[float, above(0)] = 1.5e-3
    ema_decay: Annotated[float, at_least(0), below(1)] = 0.995
    tuned: Literal["all", "branch"] = "branch"


@dataclass(frozen=True)
class Sampling(Options):
    """How a round of a motion is denoised.

    Attributes:
        way: dip; inpainting, diffusion with key poses and waypoints inpainted; control, the control branch alone; pure,
            the policy without diffusion; or direct, guidance of the noisy motion itself and not through the denoiser.
        steps: Denoising steps; 1000 is the whole schedule.
        eta: None for ancestral sampling, else DDIM with this share of its noise.
        inpaint_until: Frames with a key pose are replaced at timesteps from this one on.
        control: Whether the control branch sees the goals.
        policy_steps: Gradient steps of the policy after each denoising step; 0 switches it off.
        stop_below: No policy at timesteps below this one.
        strength: Length of a gradient step, before it is divided by the number of key frames.
        min_variance: Floor of the variance that a gradient step is scaled with.
        tolerance: The policy rests where a motion's loss is at most this.
    """

    way: Way = "dip"
    steps: Annotated[int, at_least(1), at_most(1000)] = 50
    eta: Annotated[float, at_least(0), at_most(1)] | None = None
    inpaint_until: Annotated[int, at_least(0), at_most(1000)] = 50
    control: bool = True
    policy_steps: Annotated[int, at_least(0)] = 5
    stop_below: Annotated[int, at_least(0)] = 10
    strength: Annotated[float, above(0)] = 20.0
    min_variance: Annotated[float, at_least(0)] = 0.01
    tolerance: Annotated[float, at_least(0)] = 0.0

    @property
    def gradient_steps(self) -> int:
        """Steps of the policy after a denoising step; none in ways without one."""
        return 0 if self.way in ("inpainting", "control") else self.policy_steps

    @property
    def through_denoiser(self) -> bool:
        """Whether the policy judges what the denoiser makes of a motion."""
        return self.way not in ("direct", "pure")

    @property
    def hinted(self) -> bool:
        """Whether the control branch has a part."""
        return self.control and self.way not in ("inpainting", "pure")


@dataclass(frozen=True)
class Moving(Options):
    """How a plan becomes rounds.

    Attributes:
        history: Frames that a round shares with what came before.
        blend: Whether the shared frames are blended; off, the new round simply follows.
        hold: Frames for which the last pose of a sitting or lying goal is held.
        walk_speed: Metres a second of walking, least and most.
        sit_speed: Likewise of sitting down.
        lie_speed: Likewise of lying down.
        arrive: A walk's waypoint is done when the pelvis got this near, metres, and else aimed at again from where
            the round ended; None takes it as done at its frame, wherever the body is, as the paper does.
        patience: A plan ends unfinished after this many times the rounds that its length needs.
        show_way: Whether the control branch sees the pelvis's way to a walk's waypoints in every frame, as it learnt
            from half of the frames on average; the released code shows it waypoints alone.
        reference_timing: Whether a waypoint beyond the round is replaced by the released code's point, which weights
            the ends the wrong way round.
    """

    history: Annotated[int, at_least(1)] = 10
    blend: bool = True
    hold: Annotated[int, at_least(0)] = 10
    walk_speed: tuple[float, float] = (1.1, 1.4)
    sit_speed: tuple[float, float] = (0.45, 0.6)
    lie_speed: tuple[float, float] = (0.25, 0.3)
    arrive: Annotated[float, above(0)] | None = 0.15
    patience: Annotated[int, at_least(1)] = 2
    show_way: bool = False
    reference_timing: bool = False

    def check(self) -> None:
        """Refuse speeds that are not a rising pair above 0.

        Raises:
            InputError: Naming the pair.
        """
        for name in ("walk_speed", "sit_speed", "lie_speed"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise InputError(f"{name} must be two speeds, 0 < least <= most, got {low} and {high}")


@dataclass(frozen=True)
class Place(Options):
    """A scene of the user's and what is to be done in it; without one, cases of the testbed.

    Attributes:
        scene: A room (.json), a grid of distances (.npz) or a closed mesh (.obj).
        plan: JSON file of a plan, which the verb plan writes.
        body: A body of SMPL-X's form (.npz); by default the synthetic one.
        markers: JSON file of that body's markers, feet and buttocks.
    """

    scene: str | None = None
    plan: str | None = None
    body: str | None = None
    markers: str | None = None

    def check(self) -> None:
        """Refuse a scene without a plan, and a body without markers.

        Raises:
            InputError: Naming what is missing.
        """
        if (self.scene is None) != (self.plan is None):
            raise InputError("a scene needs a plan, and a plan a scene: name both or neither")
        if (self.body is None) != (self.markers is None):
            raise InputError("a body needs markers, and markers a body: name both or neither")


@dataclass(frozen=True)
class CaseSet(Options):
    """Cases of the testbed `motion`.

    Attributes:
        cases: Number of cases, walking and sitting in turn.
        case_seed: Of the cases.
        samples: Motions of each case.
        clearance: Metres that ways keep from furniture; 0 is the hard variant.
        seed: Of speeds and noise.
    """

    cases: Annotated[int, at_least(1)] = 8
    case_seed: Annotated[int, at_least(0)] = 1
    samples: Annotated[int, at_least(1)] = 1
    clearance: Annotated[float, at_least(0)] = 0.3
    seed: Annotated[int, at_least(0)] = 0
