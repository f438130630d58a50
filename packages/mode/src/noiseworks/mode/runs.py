"""Training runs: a new model on demonstrations, or a trained one on others."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.kits.training import Batches, fit, open_run
from noiseworks.mode.config import (
    DEPTHS,
    MODEL_NAME,
    Architecture,
    MoDEConfig,
    Recipe,
    Seeing,
    SmallArchitecture,
    Training,
)
from noiseworks.mode.encoders import StateEncoder
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.task_data import TaskData
from noiseworks.mode.training import MoDEModule
from noiseworks.mode.vision import ImageEncoder, feature_dim


@dataclass(frozen=True)
class TrainReport:
    """What a training run made.

    Attributes:
        model: Directory of the averaged model.
        parameters: Number of the model's parameters.
        steps: Optimizer steps made in all.
        resumed_at: The step that this call went on from, None for a run that began.
    """

    model: Path
    parameters: int
    steps: int
    resumed_at: int | None


def config_of(architecture: Architecture, seeing: Seeing, data: TaskData) -> MoDEConfig:
    """Return an architecture with the widths of some data."""
    images = bool(data.images)
    return MoDEConfig(
        **vars(architecture),
        action_dim=data.episodes.actions.shape[1],
        obs_dim=feature_dim(DEPTHS[seeing.encoder], seeing.encoder_width) if images else data.state_dim,
        goal_dim=data.goals.shape[2],
        proprio_dim=data.state_dim if seeing.proprio and images else None,
    )


def new_model(
    data: TaskData, architecture: Architecture = SmallArchitecture(), seeing: Seeing = Seeing(), seed: int = 0
) -> MoDEModel:
    """Return an untrained model whose normalisers fit the data.

    Args:
        data: The data.
        architecture: Of the denoiser.
        seeing: What the policy sees.
        seed: Of the initial weights; training draws from (seed, step).
    """
    actions = LinearNormalizer.fit(torch.from_numpy(data.episodes.actions))
    state = LinearNormalizer.fit(torch.from_numpy(data.episodes.obs[:, : data.state_dim]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = _image_encoder(seeing, data, state) if data.images else StateEncoder(data.goals, state)
        return MoDEModel(config_of(architecture, seeing, data), encoder, actions)


def _image_encoder(seeing: Seeing, data: TaskData, state: LinearNormalizer) -> ImageEncoder:
    cameras, goal_dim, depth = list(data.images), data.goals.shape[2], DEPTHS[seeing.encoder]
    size, token = int(data.images[cameras[0]].shape[-1]), state if seeing.proprio else None
    made = ImageEncoder(cameras, goal_dim, depth, seeing.encoder_width, seeing.shift, size, token)
    if seeing.backbone is not None:
        made.load_backbone(seeing.backbone)
    return made


def run_training(
    model: MoDEModel,
    data: TaskData,
    out: Path,
    recipe: Recipe,
    training: Training,
    settings: Mapping[str, Any],
) -> TrainReport:
    """Train a model, or go on with the run of a folder, and write the averaged model.

    Args:
        model: A new one, or the one that is fine-tuned.
        data: What it learns from.
        out: Folder of the run: settings, figures, checkpoint and, at the end, `model`.
        recipe: Losses and optimiser.
        training: Length, seed, hardware.
        settings: What else the run is, by name, so that another run is not taken for this one.

    Raises:
        InputError: When the folder holds another run or too few windows are there.
    """
    batches = Batches(data.table(model.config.chunk), training.batch_size, seed=training.seed)
    module = MoDEModule(model.train(), recipe, total_steps=training.max_steps, seed=training.seed)
    sparse = not model.config.dense  # in a step some experts may get no token
    with open_run(out, {**settings, "recipe": recipe, "training": training}) as run:
        done = fit(module, batches, run=run, options=training, clip=1.0, unused_parameters=sparse)
        module.averaged_host().save_pretrained(out / MODEL_NAME)
    count = sum(p.numel() for p in model.parameters())
    return TrainReport(out / MODEL_NAME, count, done.steps, done.resumed_at)


def check_fit(host: MoDEModel, data: TaskData) -> None:
    """Refuse data of other widths, tasks or cameras than a model has.

    Raises:
        InputError: Naming both.
    """
    encoder, actions = host.encoder, data.episodes.actions.shape[1]
    if isinstance(encoder, ImageEncoder):
        what = "cameras, pixels, state, action and goal widths"
        size = encoder.size and next(iter(data.images.values())).shape[-1]
        found = (tuple(data.images), size, encoder.state and data.state_dim, actions, data.goals.shape[2])
        state = encoder.state and len(encoder.state.scale)
        expected = (encoder.cameras, encoder.size, state, host.action_dim, encoder.goal_dim)
    else:
        what = "state, action and goal widths"
        found = (data.state_dim, actions, tuple(data.goals.shape))
        expected = (encoder.state_dim, host.action_dim, tuple(encoder.goals.shape))
    if found != expected:
        raise InputError(f"the data have {what} {found}, the model {expected}; use data that fit")
