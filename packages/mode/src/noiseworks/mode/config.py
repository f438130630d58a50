"""The options of MoDE: the architecture, what a policy sees, how it trains and runs; nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, below
from noiseworks.core.output import check_file
from noiseworks.kits.policies.options import TABLETOP
from noiseworks.kits.training import Fit

Residual = Literal["normed", "prenorm"]
RoutingInput = Literal["noise", "goal", "token"]
NoiseConditioning = Literal["add", "film", "none"]
Balance = Literal["masked", "softmax"]
GoalDropout = Literal["element", "sample"]
Init = Literal["olmoe", "torch"]
Density = Literal[
    "log-logistic", "log-normal", "split-log-normal", "log-uniform", "uniform", "v-diffusion", "discrete"
]
Grid = Literal["exponential", "karras"]
Form = Literal["merged", "bmm"]
OptimizerName = Literal["adamw", "muon"]
EncoderName = Literal["state", "film-resnet18", "film-resnet34", "film-resnet50"]
DEPTHS: dict[str, Literal[18, 34, 50]] = {"film-resnet18": 18, "film-resnet34": 34, "film-resnet50": 50}
KIND, MODEL_NAME = "mode/policy", "model"
Share = Annotated[float, at_least(0), below(1)]
Count = Annotated[int, at_least(1)]


@dataclass(frozen=True)
class Architecture(Options):
    """The denoiser of a policy; the defaults are the published 8-layer model.

    Attributes:
        chunk: Actions of a prediction.
        width: Width D of a token.
        num_layers: Blocks.
        num_heads: Attention heads; divides the width.
        num_experts: Experts E of a block; 1 makes the block dense, without a router.
        top_k: Experts k that a token goes to.
        expert_factor: Hidden width of an expert over D.
        attention_dropout: Of attention weights.
        expert_dropout: Of an expert's hidden layer.
        embedding_dropout: Of the tokens.
        goal_dropout: Share of the goal that training hides.
        goal_dropout_mode: element hides single entries, as the authors' code does; sample hides whole goals, which
            classifier-free guidance needs.
        residual: normed goes on from the normalised stream, as the authors' code does; prenorm is the usual.
        routing: What routers see: noise (the level), goal (that plus the goal) or token (the token itself).
        argmax_routing: Whether training takes the k likeliest experts too, and does not draw them. The masked
            balance then sends no gradient to experts that are not chosen, and some stay unused; softmax reaches them.
        shared_expert: Whether one of the experts is used by all tokens; the router chooses k - 1 of the others.
        identity_expert: Whether the last expert passes its input on unchanged.
        noise_token: Whether the noise level is also a token.
        noise_conditioning: How the noise level enters attention: add (to all tokens), film (as their scale and
            shift) or none.
        balance: Load in the balancing loss: masked (of the chosen experts' weights, the authors' code) or softmax (of
            the router's probabilities, the paper's eq. 9).
        init: olmoe (truncated normal 0.02, the paper) or torch (what the authors' code runs).
    """

    chunk: Count = 10
    width: Count = 1024
    num_layers: Count = 8
    num_heads: Count = 8
    num_experts: Count = 4
    top_k: Count = 2
    expert_factor: Count = 4
    attention_dropout: Share = 0.3
    expert_dropout: Share = 0.1
    embedding_dropout: Share = 0.0
    goal_dropout: Share = 0.1
    goal_dropout_mode: GoalDropout = "element"
    residual: Residual = "normed"
    routing: RoutingInput = "noise"
    argmax_routing: bool = False
    shared_expert: bool = False
    identity_expert: bool = False
    noise_token: bool = True
    noise_conditioning: NoiseConditioning = "add"
    balance: Balance = "masked"
    init: Init = "olmoe"

    def check(self) -> None:
        """Refuse sizes that do not fit each other.

        Raises:
            InputError: Naming them.
        """
        if self.top_k > self.num_experts:
            raise InputError(f"top_k must be at most num_experts {self.num_experts}, got {self.top_k}")
        if self.width % self.num_heads:
            raise InputError(f"width must be a multiple of num_heads {self.num_heads}, got {self.width}")
        if self.shared_expert and self.top_k < 2:
            raise InputError("a shared expert takes one of the top_k places: top_k must be at least 2, got 1")
        if self.identity_expert and self.num_routed < 2:
            raise InputError("an identity expert needs at least one other routed expert; raise num_experts")

    @property
    def dense(self) -> bool:
        """Whether blocks have a single MLP and no router."""
        return self.num_experts == 1

    @property
    def num_routed(self) -> int:
        """Experts that routers choose from."""
        return self.num_experts - int(self.shared_expert)

    @property
    def routed_k(self) -> int:
        """Experts that routers choose."""
        return self.top_k - int(self.shared_expert)


@dataclass(frozen=True)
class SmallArchitecture(Architecture):
    """The denoiser of a policy; the defaults are the models that come with the package, which train in minutes."""

    width: Count = 64
    num_layers: Count = 3
    num_heads: Count = 4
    attention_dropout: Share = 0.0
    expert_dropout: Share = 0.0
    init: Init = "torch"


@dataclass(frozen=True)
class MoDEConfig(Architecture):
    """An architecture with the widths of the data; the defaults are those of LIBERO with ResNet-18 cameras.

    Attributes:
        action_dim: Width of an action.
        obs_dim: Width of an observation token (512 for a ResNet-18, 2048 for a ResNet-50).
        goal_dim: Width of a goal embedding.
        proprio_dim: Width of the robot's state, which becomes one more token; None for no such token.
        sigma_data: Standard deviation of the data in the preconditioning.
        sigma_min: Smallest noise level of training and sampling.
        sigma_max: Largest one.
    """

    action_dim: Count = 7
    obs_dim: Count = 512
    goal_dim: Count = 512
    proprio_dim: Annotated[int | None, at_least(1)] = None
    sigma_data: Annotated[float, above(0)] = 0.5
    sigma_min: Annotated[float, above(0)] = 0.001
    sigma_max: Annotated[float, above(0)] = 80.0

    def check(self) -> None:
        """Refuse sizes that do not fit each other.

        Raises:
            InputError: Naming them.
        """
        super().check()
        if self.sigma_max <= self.sigma_min:
            raise InputError(f"sigma_max must be above sigma_min {self.sigma_min:g}, got {self.sigma_max:g}")


@dataclass(frozen=True)
class Seeing(Options):
    """What a policy sees.

    Attributes:
        encoder: state, or images through film-resnet18, film-resnet34 or film-resnet50.
        encoder_width: Channels of a ResNet's first stage.
        proprio: Whether the robot's state is a token next to the images'.
        backbone: Safetensors file with torchvision's weights of the ResNet, such as ImageNet's, to start from.
        shift: Pixels of random shift of training images (4 at 112 pixels, 10 at 224 in the paper).
        image_size: Side of the testbed's images: 32, 48 or 64; a folder's images have their own.
    """

    encoder: EncoderName = "state"
    encoder_width: Count = 64
    proprio: bool = False
    backbone: str | None = None
    shift: Annotated[int, at_least(0)] = 0
    image_size: Count = 32

    def check(self) -> None:
        """Refuse settings of images without images.

        Raises:
            InputError: Naming them.
        """
        if self.encoder == "state" and (self.proprio or self.backbone is not None):
            raise InputError(
                "proprio and backbone are for encoders of images; choose one, such as film-resnet18"
            )

    @property
    def size(self) -> int | None:
        """Side of the testbed's images, None for policies that see states."""
        return None if self.encoder == "state" else self.image_size


@dataclass(frozen=True)
class Recipe(Options):
    """Losses and optimiser; the defaults are those of the models that come with the package.

    Attributes:
        learning_rate: Peak rate (1e-4 in the paper, with adamw).
        optimizer: adamw (the paper's) or muon.
        weight_decay: Of matrices.
        gamma: Weight of the balancing loss.
        z_weight: Weight of the router z-loss.
        density: Density of the training noise levels.
        ema_decay: Largest decay of the averaged weights.
    """

    BETAS: ClassVar[tuple[float, float]] = (0.9, 0.95)
    STAGES: ClassVar[tuple[float, float]] = (0.02, 0.08)

    learning_rate: Annotated[float, above(0)] = 6e-3
    optimizer: OptimizerName = "muon"
    weight_decay: Annotated[float, at_least(0)] = 0.05
    gamma: Annotated[float, at_least(0)] = 0.01
    z_weight: Annotated[float, at_least(0)] = 0.0
    density: Density = "log-logistic"
    ema_decay: Share = 0.999


@dataclass(frozen=True)
class Training(Fit):
    """Length, seed, hardware and bookkeeping of a training run."""

    max_steps: Count = 800
    batch_size: Count = 128


@dataclass(frozen=True)
class Demonstrations(Options):
    """What a policy learns from.

    Attributes:
        data: tabletop, or a folder with episodes.npz, goals.npy and, for images, images-<camera>.npy.
        demonstrations: Demonstrations per task of the testbed, 200 by default; a folder holds its own number.
    """

    data: str
    demonstrations: Annotated[int | None, at_least(1)] = None

    def check_present(self) -> None:
        """Refuse data that are not there.

        Raises:
            InputError: Naming them.
        """
        if self.data != TABLETOP and not Path(self.data).is_dir():
            raise InputError(
                f"no data at {self.data}: name a folder with episodes.npz and goals.npy, or {TABLETOP}"
            )
        if self.data != TABLETOP and self.demonstrations is not None:
            raise InputError("demonstrations is for the testbed: a folder holds its own number of them")


@dataclass(frozen=True)
class Judging(Options):
    """On what variants are compared.

    Attributes:
        episodes: Episodes of each task of the testbed; a folder has no environment, so none are run.
    """

    episodes: Count = 10


@dataclass(frozen=True)
class Levels(Options):
    """How many noise levels a policy samples at.

    Attributes:
        steps: Noise levels of the sampler.
    """

    steps: Count = 10


@dataclass(frozen=True)
class Running(Levels):
    """How a policy samples.

    Attributes:
        grid: How levels are spaced: exponential (the paper's) or karras.
        experts: cached, or routed in every call; a dense model has neither.
    """

    grid: Grid = "exponential"
    experts: Literal["cached", "routed"] = "cached"


@dataclass(frozen=True)
class Timing(Options):
    """What replans are timed.

    Attributes:
        batch: Environments that replan together.
        repeats: Replans of each kind; the median counts.
        backend: Also times merged experts, and the dense model, compiled by that backend of torch.compile, such as
            inductor or cudagraphs.
    """

    batch: Count = 1
    repeats: Count = 30
    backend: str | None = None


def check_ending(path: Path, endings: tuple[str, ...]) -> None:
    """Refuse a picture's name that ends otherwise or cannot be written.

    Raises:
        InputError: Naming the endings, or why it cannot be written.
    """
    if path.suffix not in endings:
        raise InputError(f"the file must end in {' or '.join(endings)}, got {path}")
    check_file(path)
