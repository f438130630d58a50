"""The commands `train` and `finetune`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from noiseworks.core.artifacts import atomic_write, check_folder, check_writable
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.cli import SPREAD
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.mode.config import (
    Balance,
    GoalDropout,
    Init,
    MoDEConfig,
    NoiseConditioning,
    Residual,
    Routing,
)
from noiseworks.mode.edm import Density
from noiseworks.mode.encoders import StateEncoder
from noiseworks.mode.model import KIND, MoDEModel
from noiseworks.mode.task_data import TaskData, load_task_data
from noiseworks.mode.training import MoDEModule, OptimizerName
from noiseworks.mode.vision import DEPTHS, EncoderName, ImageEncoder, feature_dim

SETTINGS_NAME, MODEL_NAME = "settings.json", "model"


@dataclass(frozen=True)
class Architecture:
    """The model of a training run; see `MoDEConfig`. The defaults are those of the shipped models.

    Attributes:
        width: Width of a token (1024 in the paper).
        layers: Blocks (8).
        heads: Attention heads (8).
        experts: Experts of a block; 1 makes the model dense.
        top_k: Experts that a token goes to.
        expert_factor: Hidden width of an expert over the width.
        chunk: Actions of a prediction.
        routing: What routers see: noise, goal (and noise) or token.
        noise_conditioning: How the noise enters attention: add, film or none.
        noise_token: Whether the noise level is also a token.
        residual: normed (the authors' code) or prenorm.
        shared_expert: Whether all tokens use one of the experts.
        balance: Form of the balancing loss: masked or softmax.
        attention_dropout: Of attention weights (0.3 in the paper).
        expert_dropout: Of an expert's hidden layer (0.1).
        goal_dropout: Share of the goal that is hidden.
        goal_dropout_mode: element or sample.
        init: olmoe or torch.
        argmax_routing: Whether training takes the k likeliest experts too, and does not draw them.
        identity_expert: Whether the last expert passes its input on unchanged.
        embedding_dropout: Of the tokens.
        encoder: What the policy sees: the state, or images through film-resnet18, -34 or -50.
        encoder_width: Channels of a ResNet's first stage.
        proprio: Whether the robot's state is a token next to the images'.
        backbone: Safetensors file with torchvision's weights of the ResNet, such as ImageNet's, to start from.
        shift: Pixels of random shift of training images (4 at 112 pixels, 10 at 224 in the paper).
        image_size: Side of the testbed's images: 32, 48 or 64; a folder's images have their own.
    """

    width: int = 64
    layers: int = 3
    heads: int = 4
    experts: int = 4
    top_k: int = 2
    expert_factor: int = 4
    chunk: int = 10
    routing: Routing = "noise"
    noise_conditioning: NoiseConditioning = "add"
    noise_token: bool = True
    residual: Residual = "normed"
    shared_expert: bool = False
    balance: Balance = "masked"
    attention_dropout: float = 0.0
    expert_dropout: float = 0.0
    goal_dropout: float = 0.1
    goal_dropout_mode: GoalDropout = "element"
    init: Init = "torch"
    argmax_routing: bool = False
    identity_expert: bool = False
    embedding_dropout: float = 0.0
    encoder: EncoderName = "state"
    encoder_width: int = 64
    proprio: bool = False
    backbone: str | None = None
    shift: int = 0
    image_size: int = 32

    def config(self, data: TaskData) -> MoDEConfig:
        """Return the denoiser's configuration for some data."""
        seen = ("encoder", "encoder_width", "proprio", "backbone", "shift", "image_size")
        own = {name: value for name, value in asdict(self).items() if name not in seen}
        renamed = {"layers": "num_layers", "heads": "num_heads", "experts": "num_experts"}
        settings = {renamed.get(name, name): value for name, value in own.items()}
        return MoDEConfig(
            action_dim=data.episodes.actions.shape[1],
            obs_dim=feature_dim(DEPTHS[self.encoder], self.encoder_width) if data.images else data.state_dim,
            goal_dim=data.goals.shape[2],
            proprio_dim=data.state_dim if self.proprio and data.images else None,
            **settings,
        )

    def new_encoder(self, data: TaskData) -> StateEncoder | ImageEncoder:
        """Return an untrained encoder that fits the data."""
        import torch

        state = LinearNormalizer.fit(torch.from_numpy(data.episodes.obs[:, : data.state_dim]))
        if data.images:
            cameras, goal_dim = list(data.images), data.goals.shape[2]
            depth, size = DEPTHS[self.encoder], int(data.images[cameras[0]].shape[-1])
            token = state if self.proprio else None
            made = ImageEncoder(cameras, goal_dim, depth, self.encoder_width, self.shift, size, token)
            if self.backbone is not None:
                made.load_backbone(self.backbone)
            return made
        if self.proprio or self.backbone is not None:
            raise InputError(
                "proprio and backbone are for encoders of images; choose one, such as film-resnet18"
            )
        return StateEncoder(data.goals, state)


@dataclass(frozen=True)
class Optimization:
    """How a run trains; the defaults are those of the shipped models, whose precision was bf16-mixed.

    Attributes:
        steps: Optimizer steps.
        batch_size: Windows of a step (512 in the paper).
        learning_rate: Peak rate (1e-4 in the paper, with adamw).
        optimizer: adamw (the paper's) or muon.
        weight_decay: Of matrices.
        gamma: Weight of the balancing loss.
        z_weight: Weight of the router z-loss.
        density: Density of the training noise levels.
        ema_decay: Largest decay of the averaged weights.
        seed: Of everything that is drawn.
        checkpoint_every: Steps between checkpoints.
        device: auto, cpu or cuda.
        devices: Processes.
        strategy: Lightning's strategy.
        precision: Lightning's precision, such as 32-true or bf16-mixed.
        progress: Whether a progress bar is shown.
    """

    steps: int = 800
    batch_size: int = 128
    learning_rate: float = 6e-3
    optimizer: OptimizerName = "muon"
    weight_decay: float = 0.05
    gamma: float = 0.01
    z_weight: float = 0.0
    density: Density = "log-logistic"
    ema_decay: float = 0.999
    seed: int = 0
    checkpoint_every: int = 100
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    progress: bool = True


@dataclass(frozen=True)
class TrainReport:
    """What a training run made.

    Attributes:
        model: Directory of the averaged model.
        parameters: Number of the model's parameters.
        steps: Optimizer steps made in all.
    """

    model: Path
    parameters: int
    steps: int


def train(
    data: str,
    out: Path,
    *,
    architecture: Annotated[Architecture, SPREAD] = Architecture(),
    optimization: Annotated[Optimization, SPREAD] = Optimization(),
    episodes: int | None = None,
    resume: bool = False,
) -> TrainReport:
    """Train a MoDE policy, or with `experts=1` a dense one, on demonstrations.

    Args:
        data: `tabletop`, or a folder with episodes.npz, goals.npy and, for images, images-<camera>.npy.
        out: Folder of the run: checkpoints, logs and, at the end, `model`.
        architecture: The model.
        optimization: How it trains.
        episodes: Demonstrations per task of the testbed.
        resume: Whether to go on with the run of that folder, to the same numbers.

    Raises:
        InputError: When an argument is out of range, or the folder holds a run and `resume` is not given, or the
            run was made with other settings.
    """
    check_writable(out)
    check_folder(out / MODEL_NAME, KIND, sources=(data,))
    check_choice("encoder", architecture.encoder, get_args(EncoderName))
    size = None if architecture.encoder == "state" else architecture.image_size
    found = load_task_data(data, episodes=episodes, image_size=size)
    check_number("image_size", architecture.image_size, low=1, integer=True)
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(optimization.seed)  # only the initial weights; training draws from (seed, step)
        model = new_model(architecture, found)
    chosen = {"data": data, "episodes": episodes, "architecture": asdict(architecture)}
    claim_folder(out, chosen | _lasting(optimization), resume)
    return run_training(model, found, out, optimization)


def finetune(
    model: str,
    data: str,
    out: Path,
    *,
    optimization: Annotated[Optimization, SPREAD] = Optimization(),
    freeze_routers: bool = False,
    episodes: int | None = None,
    resume: bool = False,
) -> TrainReport:
    """Go on training a MoDE policy on other demonstrations.

    Args:
        model: Directory of a trained policy.
        data: `tabletop`, or a folder with episodes.npz and goals.npy; of the widths that the model has.
        out: Folder of the run.
        optimization: How it trains.
        freeze_routers: Whether the routers stay as they are, without balancing loss, as the paper fine-tunes.
        episodes: Demonstrations per task of the testbed.
        resume: Whether to go on with the run of that folder.

    Raises:
        InputError: When an argument is out of range or the data do not fit the model.
    """
    check_writable(out)
    check_folder(out / MODEL_NAME, KIND, sources=(model, data))
    host = MoDEModel.from_pretrained(model)
    images = isinstance(host.encoder, ImageEncoder)
    size = (host.encoder.size or Architecture.image_size) if images else None
    found = load_task_data(data, episodes=episodes, image_size=size)
    _check_fit(host, found)
    if not images:
        host.encoder.goals.copy_(found.goals)
    chosen = {"model": model, "data": data, "episodes": episodes, "freeze_routers": freeze_routers}
    claim_folder(out, chosen | _lasting(optimization), resume)
    return run_training(host.freeze_routers() if freeze_routers else host, found, out, optimization)


def new_model(architecture: Architecture, data: TaskData) -> MoDEModel:
    """Return an untrained model whose normalisers fit the data."""
    import torch

    actions = LinearNormalizer.fit(torch.from_numpy(data.episodes.actions))
    return MoDEModel(architecture.config(data), architecture.new_encoder(data), actions)


def run_training(model: MoDEModel, data: TaskData, out: Path, options: Optimization) -> TrainReport:
    """Train a model, or go on where the folder's checkpoint stands, and write the averaged one."""
    from noiseworks.kits.policies.training import fit

    check_number("steps", options.steps, low=1, integer=True)
    module = MoDEModule(
        model.train(),
        learning_rate=options.learning_rate,
        total_steps=options.steps,
        gamma=options.gamma,
        z_weight=options.z_weight,
        density=options.density,
        optimizer=options.optimizer,
        weight_decay=options.weight_decay,
        ema_decay=options.ema_decay,
        seed=options.seed,
    )
    fit(
        module,
        data.table(model.config.chunk),
        out,
        max_steps=options.steps,
        batch_size=options.batch_size,
        checkpoint_every=options.checkpoint_every,
        device=options.device,
        devices=options.devices,
        strategy=options.strategy,
        precision=options.precision,
        progress=options.progress,
    )
    module.averaged_host().save_pretrained(out / MODEL_NAME)
    count = sum(p.numel() for p in model.parameters())
    return TrainReport(out / MODEL_NAME, count, int(module.global_step))


def _check_fit(host: MoDEModel, data: TaskData) -> None:
    """Refuse data of other widths, tasks or cameras than a model has."""
    encoder, actions = host.encoder, data.episodes.actions.shape[1]
    if isinstance(encoder, ImageEncoder):
        what = "cameras, pixels, state, action and goal widths"
        size = encoder.size and next(iter(data.images.values())).shape[-1]
        found = (tuple(data.images), size, encoder.state and data.state_dim, actions, data.goals.shape[2])
        expected = (
            encoder.cameras,
            encoder.size,
            encoder.state and len(encoder.state.scale),
            host.action_dim,
            encoder.goal_dim,
        )
    else:
        what = "state, action and goal widths"
        found = (data.state_dim, actions, tuple(data.goals.shape))
        expected = (encoder.state_dim, host.action_dim, tuple(encoder.goals.shape))
    if found != expected:
        raise InputError(f"the data have {what} {found}, the model {expected}; use data that fit")


def _lasting(options: Optimization) -> dict[str, Any]:
    """Return the settings that the numbers of a run depend on."""
    free = {"checkpoint_every", "device", "devices", "strategy", "progress"}
    return {"optimization": {name: v for name, v in asdict(options).items() if name not in free}}


def claim_folder(out: Path, settings: dict[str, Any], resume: bool) -> None:
    """Write a run's settings to a new folder, or compare them with those of the run that goes on.

    Raises:
        InputError: When the folder holds a run and `resume` is not given, or the settings differ.
    """
    path, text = out / SETTINGS_NAME, json.dumps(settings, indent=2) + "\n"
    if not path.exists():
        atomic_write(path, text)
        return
    if not resume:
        raise InputError(f"{out} holds a run already: go on with --resume, or name another folder")
    held = json.loads(path.read_text())
    if "architecture" in held:  # a run of an earlier release lacks later settings
        held["architecture"] = asdict(Architecture()) | held["architecture"]
    if held != json.loads(text):
        raise InputError(f"{out} holds a run with other settings (see {SETTINGS_NAME}); name another folder")
