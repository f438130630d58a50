"""What the claim compares: where each arm's diffusion runs, its networks, and the models that ship."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.ldm.conditioning import Condition, Conditioner
from noiseworks.ldm.model import LatentModel
from noiseworks.ldm.objective import make_scheduler
from torch import Tensor, nn

SHIPPED = Path(__file__).parent / "shipped"
SHIPPED_KIND = "ldm/claim"
PREDICTION_TYPE = "sample"  # x0: the pixel model learns too little in minutes when it predicts ε
_EARLY = (1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1.0)


@dataclass(frozen=True)
class Space:
    """Where an arm's diffusion runs, and its U-Net and training settings, chosen on seed 0.

    Attributes:
        label: What tables call the arm.
        channels: Channels of what is diffused.
        side: Its height and width.
        widths: Channels of the U-Net's levels; attention on the last one.
        batch_size: Rows a step.
        first_stage: Directory or `testbed:` name of the first stage; None diffuses pixels.
        marks: Shares of the training time at which samples are scored.
    """

    label: str
    channels: int
    side: int
    widths: tuple[int, ...]
    batch_size: int
    first_stage: str | None
    marks: tuple[float, ...]


SPACES = {
    "pixels": Space("pixel diffusion, f = 1", 3, 32, (16, 32, 48), 8, None, (1 / 4, 1 / 2, 1.0)),
    "latent": Space("latent diffusion, f = 4", 4, 8, (32, 48), 32, "testbed:shapes-vae", _EARLY),
}


class AttributeConditioner(Conditioner):
    """One learned vector a value of each attribute; their sum joins the time embedding.

    Args:
        values: Numbers of values of the attributes.
        dim: Width of the U-Net's time embedding.
    """

    kind = "adm"

    def __init__(self, values: Sequence[int], dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, dim) for count in values)

    def forward(self, batch: Mapping[str, Any], drop: Tensor | None = None) -> Condition:
        """Return the sum of the vectors of `attributes`, int64 [B, 5]; there is no null condition."""
        columns = batch["attributes"].unbind(dim=1)
        return Condition(adm=sum(table(column) for table, column in zip(self.tables, columns, strict=True)))


def make_networks(space: Space, values: Sequence[int], seed: int) -> tuple[nn.Module, AttributeConditioner]:
    """Return the untrained U-Net and conditioner of an arm.

    Args:
        space: The arm's.
        values: Numbers of values of the attributes.
        seed: Of the weights.
    """
    from diffusers import UNet2DModel

    lower = len(space.widths) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=space.side,
            in_channels=space.channels,
            out_channels=space.channels,
            block_out_channels=space.widths,
            down_block_types=("DownBlock2D",) * lower + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * lower,
            layers_per_block=1,
            attention_head_dim=8,
            norm_num_groups=8,
            class_embed_type="identity",
        )
        return unet, AttributeConditioner(values, 4 * space.widths[0])


def save_model(folder: Path, model: LatentModel, record: Mapping[str, Any]) -> None:
    """Write an arm's model in float16 with the record of its training."""
    networks = nn.ModuleDict({"unet": model.unet, "conditioner": model.conditioner})
    tensors = {key: tensor.half() for key, tensor in networks.state_dict().items()}
    known = {"scale_factor": model.scale_factor, "prediction_type": model.scheduler.config.prediction_type}
    save_artifact(folder, SHIPPED_KIND, {**record, **known}, tensors)


def load_model(
    arm: str, values: Sequence[int], vae: nn.Module | None, folder: Path = SHIPPED
) -> tuple[LatentModel, dict[str, Any]]:
    """Return the model of an arm that `save_model` wrote to `folder/arm`, and its record."""
    config, tensors = load_artifact(folder / arm, SHIPPED_KIND)
    unet, conditioner = make_networks(SPACES[arm], values, 0)
    networks = nn.ModuleDict({"unet": unet, "conditioner": conditioner}).eval().requires_grad_(False)
    networks.load_state_dict(tensors)
    schedule = make_scheduler(prediction_type=config["prediction_type"])
    return LatentModel(unet, vae, schedule, conditioner, config["scale_factor"]), config


def scheduler() -> Any:
    """Return the schedule of every arm."""
    return make_scheduler(prediction_type=PREDICTION_TYPE)


def ship_models(folder: Path, target: Path = SHIPPED) -> None:
    """Copy the models of one seed's laptop folder to the package, for the quick scale.

    Args:
        folder: The folder of a finished (claim, seed), which holds a folder an arm.
        target: Where the package keeps them.
    """
    for arm in SPACES:
        config, tensors = load_artifact(folder / arm, SHIPPED_KIND)
        save_artifact(target / arm, SHIPPED_KIND, config, tensors)
