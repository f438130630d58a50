"""Beginning from an image DiT's weights (section 3.4): what it does with one image is done with every future frame."""

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones.dit import DiT
from noiseworks.pad.transformer import PADTransformer


@torch.no_grad()
def from_dit(dit: DiT, network: PADTransformer, *, divide: bool = False) -> PADTransformer:
    """Load an image DiT's weights into a PAD transformer and return it.

    Each noisy frame enters through the DiT's input and leaves through its head; the present and the text begin at
    nothing. Poses and depth keep their first weights.

    Args:
        dit: A model of the released layout; `from_diffusers` of the kit `backbones` makes one of diffusers' class.
        network: Of the same width, depth, heads, patch and channels.
        divide: Whether the input is divided by the number of frames, so that equal frames are embedded as the DiT
            embeds one; the reference does not divide.

    Raises:
        InputError: When the networks do not fit or predict something else, or the DiT has no variance where the network
            has one.
    """
    image, config = network.modalities[0], dit.config
    frames, rest = divmod(image.noisy, config.channels)
    if rest or not frames or image.clean != config.channels or image.patch != config.patch:
        raise InputError(
            f"the DiT's images have {config.channels} channels and patches of {config.patch}, the network's "
            f"{image.clean} and {image.patch}, of which {image.noisy} channels are denoised"
        )
    if network.prediction != "epsilon":
        raise InputError("the DiT predicts noise: make the network with prediction epsilon")
    if network.learn_sigma and not config.learn_sigma:
        raise InputError("the DiT learns no variance: make the network with learn_sigma=False")
    given = dit.state_dict()
    inputs, outputs = given["x_embedder.proj.weight"], config.patch**2
    made = {name: tensor for name, tensor in given.items() if name.startswith(("blocks.", "t_embedder."))}
    shared = inputs.repeat(1, frames, 1, 1) / (frames if divide else 1)
    made[f"embedders.{image.name}.proj.weight"] = torch.cat((shared, torch.zeros_like(inputs)), 1)
    made[f"embedders.{image.name}.proj.bias"] = given["x_embedder.proj.bias"]
    kept = 2 if network.learn_sigma else 1
    for kind in ("weight", "bias"):
        table = given[f"final_layer.linear.{kind}"].unflatten(0, (outputs, -1, config.channels))[:, :kept]
        every = table[:, :, None].expand(-1, -1, frames, *table.shape[2:])
        made[f"heads.{image.name}.linear.{kind}"] = every.flatten(0, 3)
        made[f"heads.{image.name}.adaLN_modulation.1.{kind}"] = given[
            f"final_layer.adaLN_modulation.1.{kind}"
        ]
    own = network.state_dict()
    wrong = [name for name, tensor in made.items() if name not in own or own[name].shape != tensor.shape]
    blocks = len(network.blocks)
    if wrong or blocks != config.depth or network.blocks[0].attn.heads != config.heads:
        raise InputError(
            f"the DiT has {config.depth} blocks of width {config.width} and {config.heads} heads, the network "
            f"{blocks} of width {network.text_embedder.out_features} and {network.blocks[0].attn.heads}"
        )
    network.load_state_dict(own | made)
    network.text_embedder.weight.zero_()
    return network
