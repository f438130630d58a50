"""The sizes and the choices of a MoDE denoiser."""

from dataclasses import dataclass
from typing import Literal

from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError

Residual = Literal["normed", "prenorm"]
Routing = Literal["noise", "goal", "token"]
NoiseConditioning = Literal["add", "film", "none"]
Balance = Literal["masked", "softmax"]
GoalDropout = Literal["element", "sample"]
Init = Literal["olmoe", "torch"]


@dataclass(frozen=True)
class MoDEConfig:
    """Sizes and choices; the defaults are the published 8-layer model with two camera tokens.

    Attributes:
        action_dim: Width of an action.
        obs_dim: Width of an observation token (512 for a ResNet-18, 2048 for a ResNet-50).
        goal_dim: Width of a goal embedding.
        proprio_dim: Width of the robot's state, which becomes one more token; None for no such token.
        chunk: Actions of a prediction.
        width: Width D of a token.
        num_layers: Blocks.
        num_heads: Attention heads; divides the width.
        num_experts: Experts E of a block; 1 makes the block dense, without a router.
        top_k: Experts k that a token goes to.
        expert_factor: Hidden width of an expert over D.
        sigma_data: Standard deviation of the data in the preconditioning.
        sigma_min: Smallest noise level of training and sampling.
        sigma_max: Largest one.
        attention_dropout: Of attention weights.
        expert_dropout: Of an expert's hidden layer.
        embedding_dropout: Of the tokens.
        goal_dropout: Share of the goal that training hides.
        goal_dropout_mode: `element` hides single entries, as the authors' code does; `sample` hides whole goals,
            which classifier-free guidance needs.
        residual: `normed` goes on from the normalised stream, as the authors' code does; `prenorm` is the usual.
        routing: What routers see: the noise level, that plus the goal, or the token itself.
        argmax_routing: Whether training takes the k likeliest experts too, and does not draw them.
        shared_expert: Whether one of the experts is used by all tokens; the router chooses k - 1 of the others.
        identity_expert: Whether the last expert passes its input on unchanged.
        noise_token: Whether the noise level is also a token.
        noise_conditioning: How the noise level enters attention: added to all tokens, as their scale and shift,
            or not at all.
        balance: Load in the balancing loss: of the chosen experts' weights (the authors' code) or of the
            router's probabilities (the paper's eq. 9).
        init: `olmoe` truncated normal 0.02 (the paper), or `torch` defaults (what the authors' code runs).
    """

    action_dim: int = 7
    obs_dim: int = 512
    goal_dim: int = 512
    proprio_dim: int | None = None
    chunk: int = 10
    width: int = 1024
    num_layers: int = 8
    num_heads: int = 8
    num_experts: int = 4
    top_k: int = 2
    expert_factor: int = 4
    sigma_data: float = 0.5
    sigma_min: float = 0.001
    sigma_max: float = 80.0
    attention_dropout: float = 0.3
    expert_dropout: float = 0.1
    embedding_dropout: float = 0.0
    goal_dropout: float = 0.1
    goal_dropout_mode: GoalDropout = "element"
    residual: Residual = "normed"
    routing: Routing = "noise"
    argmax_routing: bool = False
    shared_expert: bool = False
    identity_expert: bool = False
    noise_token: bool = True
    noise_conditioning: NoiseConditioning = "add"
    balance: Balance = "masked"
    init: Init = "olmoe"

    def __post_init__(self) -> None:
        for name in ("action_dim", "obs_dim", "goal_dim", "chunk", "width", "num_layers", "num_heads"):
            check_number(name, getattr(self, name), low=1, integer=True)
        for name in ("num_experts", "expert_factor"):
            check_number(name, getattr(self, name), low=1, integer=True)
        check_number("top_k", self.top_k, low=1, high=self.num_experts, integer=True)
        if self.proprio_dim is not None:
            check_number("proprio_dim", self.proprio_dim, low=1, integer=True)
        if self.width % self.num_heads:
            raise InputError(f"width must be a multiple of num_heads {self.num_heads}, got {self.width}")
        check_number("sigma_data", self.sigma_data, low=0, low_open=True)
        check_number("sigma_min", self.sigma_min, low=0, low_open=True)
        check_number("sigma_max", self.sigma_max, low=self.sigma_min, low_open=True)
        for name in ("attention_dropout", "expert_dropout", "embedding_dropout", "goal_dropout"):
            check_number(name, getattr(self, name), low=0, high=1, high_open=True)
        check_choice("goal_dropout_mode", self.goal_dropout_mode, ("element", "sample"))
        check_choice("residual", self.residual, ("normed", "prenorm"))
        check_choice("routing", self.routing, ("noise", "goal", "token"))
        check_choice("noise_conditioning", self.noise_conditioning, ("add", "film", "none"))
        check_choice("balance", self.balance, ("masked", "softmax"))
        check_choice("init", self.init, ("olmoe", "torch"))
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
