"""What the commands make of choices on disk: what they say of people, and what is left to train on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.diffusers_hosts.options import Hardware
from noiseworks.kits.image_tuning.choices import Choice, encode_files
from noiseworks.ppd.encoders import describe_files, named_encoder
from noiseworks.ppd.options import FAMILIES
from noiseworks.ppd.users import Users
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def described_files(given: Sequence[Choice], encoder: str, model: str | None, hardware: Hardware) -> Tensor:
    """Return what each choice says [n, d].

    Args:
        given: The choices, each with a loser.
        encoder: Name of the features, as for `named_encoder`.
        model: The pipeline, for the encoder latents.
        hardware: Where that runs.

    Raises:
        InputError: When the encoder latents has no pipeline.
    """
    if encoder == "latents" and model is None:
        raise InputError("the encoder latents needs the pipeline: give model, or another encoder")
    pipe = None
    if encoder == "latents":
        pipe = load_pipeline(model, hardware.torch_device(), hardware.torch_dtype(), FAMILIES)
    features = named_encoder(encoder, pipe)
    return describe_files(features, [one.winner for one in given], [one.loser for one in given])


def left_to_train(
    pipe: "DiffusionPipeline", given: Sequence[Choice], people: Users
) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Return what is trained on: known people's choices without those that their embeddings are made of.

    Args:
        pipe: The pipeline, whose first stage encodes the images.
        given: The choices that the people were embedded from.
        people: The people.

    Returns:
        Prompts, latents winner first [N, 2, ...], prompt numbers [N] and users' places [N].

    Raises:
        InputError: When nothing is left.
    """
    reserved = dict(zip(people.names, map(set, people.reserved), strict=True))
    kept = [one for i, one in enumerate(given) if one.user in reserved and i not in reserved[one.user]]
    if not kept:
        raise InputError("no choice is left beside those of the embeddings; lower reserved, or give more")
    prompts = list(dict.fromkeys(one.prompt for one in kept))
    latents = encode_files(pipe, [file for one in kept for file in (one.winner, one.loser)])
    ids = torch.tensor([prompts.index(one.prompt) for one in kept])
    who = torch.tensor([people.number(one.user) for one in kept])
    return prompts, latents.unflatten(0, (-1, 2)), ids, who
