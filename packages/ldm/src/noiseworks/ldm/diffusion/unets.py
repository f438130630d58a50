"""A U-Net without cross-attention that has the same number of heads on every level, as the authors' can."""

import functools
from typing import Any

from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from noiseworks.core.errors import InputError


class FixedHeadsUNet2DModel(UNet2DModel):
    """A `UNet2DModel` whose `attention_head_dim` is the number of heads of every level, not their width.

    `UNet2DConditionModel` reads that name so, too. The authors' models for inpainting and churches have eight
    heads on levels of different width.
    """

    @functools.wraps(UNet2DModel.__init__)  # saving and loading read the names of its arguments
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        heads = self.config.attention_head_dim
        for module in self.modules():
            if isinstance(module, Attention):
                if module.inner_dim % heads:
                    raise InputError(f"{module.inner_dim} channels cannot be split into {heads} heads")
                module.heads = module.sliceable_head_dim = heads
                module.scale = (module.inner_dim // heads) ** -0.5
