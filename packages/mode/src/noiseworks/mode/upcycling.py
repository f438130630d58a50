"""Sparse upcycling: a trained dense transformer becomes a mixture whose experts all start as its MLP."""

from dataclasses import replace

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.mode.experts import SwiGLU
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.network import MoDEDenoiser
from torch import nn


def upcycle(
    model: MoDEModel, *, experts: int = 4, top_k: int = 2, jitter: float = 0.0, seed: int = 0
) -> MoDEModel:
    """Return a mixture of experts that, with `jitter` 0, computes what the dense model does, for any routing.

    Gates sum to 1, so equal experts give the dense output. Routers start even.

    Args:
        model: A dense model (`num_experts` 1); it stays as it is.
        experts: Copies of each MLP.
        top_k: Experts that a token goes to.
        jitter: Standard deviation of noise on the copies' weights, over the weights' own.
        seed: Of the noise and of the routers.

    Raises:
        InputError: When the model is no dense one, or a number is out of range.
    """
    if not model.config.dense:
        raise InputError(f"upcycling needs a dense model, this one has {model.config.num_experts} experts")
    check_number("experts", experts, low=2, integer=True)
    check_number("jitter", jitter, low=0)
    config = replace(model.config, num_experts=experts, top_k=top_k)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = MoDEDenoiser(config).to(model.denoiser.pos_emb)
        kept = {n: t for n, t in model.denoiser.state_dict().items() if ".experts." not in n}
        denoiser.load_state_dict(kept, strict=False)
        for block, dense in zip(denoiser.blocks, model.denoiser.blocks, strict=True):
            copy_mlp(dense.experts[0], block.experts, jitter)
    made = MoDEModel(config, model.encoder, model.normalizer, denoiser)
    return made.train(model.training)


@torch.no_grad()
def copy_mlp(mlp: SwiGLU, experts: nn.ModuleList, jitter: float = 0.0) -> None:
    """Copy a dense MLP into every expert, with noise of `jitter` times each matrix's deviation."""
    for expert in experts:
        expert.load_state_dict(mlp.state_dict())
        for weight in (expert.project.weight, expert.out.weight):
            if jitter:
                weight.add_(torch.randn_like(weight) * (jitter * weight.std()))
