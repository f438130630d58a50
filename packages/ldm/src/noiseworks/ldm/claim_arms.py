"""What the claim compares: where each arm's diffusion runs, its networks, and the models that ship."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from noiseworks.ldm.claim_spaces import SPACES, Space
from noiseworks.ldm.conditioning.conditioners import Condition, Conditioner
from noiseworks.ldm.diffusion.model import LatentModel
from noiseworks.ldm.diffusion.objective import make_scheduler
from torch import Tensor, nn

PREDICTION_TYPE = "sample"  # x0: the pixel model learns too little in minutes when it predicts ε


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


def state_of(model: LatentModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what rebuilds an arm's model besides its architecture: settings and tensors."""
    networks = nn.ModuleDict({"unet": model.unet, "conditioner": model.conditioner})
    settings = {
        "scale_factor": model.scale_factor,
        "prediction_type": model.scheduler.config.prediction_type,
    }
    return settings, networks.state_dict()


def rebuilt(
    arm: str,
    values: Sequence[int],
    vae: nn.Module | None,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> LatentModel:
    """Return the model of an arm from what `state_of` returned."""
    unet, conditioner = make_networks(SPACES[arm], values, 0)
    networks = nn.ModuleDict({"unet": unet, "conditioner": conditioner}).eval().requires_grad_(False)
    networks.load_state_dict(tensors)
    schedule = make_scheduler(prediction_type=config["prediction_type"])
    return LatentModel(unet, vae, schedule, conditioner, config["scale_factor"])


def scheduler() -> Any:
    """Return the schedule of every arm."""
    return make_scheduler(prediction_type=PREDICTION_TYPE)
