"""Vector quantisation: nearest codes, codebook loss, usage."""

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2**24
_CHUNK_ELEMENTS_CPU = 2**19  # 2 MiB: the product is still in the cache when its smallest entries are sought


def nearest_codes(latents: Tensor, codebook: Tensor, chunk: int | None = None) -> Tensor:
    """Return the index of the nearest codebook row of each latent vector; the lowest index wins ties.

    The squared distance |z|² - 2 z·c + |c|² is computed without |z|², which does not change the minimum, as
    one matrix product a chunk, so the full [M, n] table never exists and no one-hot matrix is made.

    Args:
        latents: [M, d].
        codebook: [n, d].
        chunk: Rows of latents a matrix product; by default such that its result has at most 2^24 elements, and
            on a CPU 2^19.

    Returns:
        [M] int64 indices.
    """
    if chunk is None:
        elements = _CHUNK_ELEMENTS_CPU if latents.device.type == "cpu" else _CHUNK_ELEMENTS
        chunk = max(1, elements // len(codebook))
    latents, codebook = latents.detach().float(), codebook.detach().float()
    norms = codebook.square().sum(dim=1)
    found = [torch.addmm(norms, part, codebook.T, alpha=-2).argmin(dim=1) for part in latents.split(chunk)]
    return torch.cat(found)


def codebook_loss(latents: Tensor, quantised: Tensor, beta: float = 0.25, legacy: bool = True) -> Tensor:
    """Return the loss that pulls codes and encoder outputs together (section 3.1, VQ regularisation).

    Args:
        latents: Encoder outputs z_e, any shape.
        quantised: Their codes z_q, same shape, differentiable with respect to the codebook.
        beta: Weight of the second term.
        legacy: True is the authors' order, mean((sg z_q - z_e)²) + beta mean((z_q - sg z_e)²); False puts
            beta on the commitment term, the first one, as in the VQ-VAE paper.
    """
    commitment = (quantised.detach() - latents).square().mean()
    embedding = (quantised - latents.detach()).square().mean()
    return commitment + beta * embedding if legacy else beta * commitment + embedding


def straight_through(latents: Tensor, quantised: Tensor) -> Tensor:
    """Return `quantised` with the gradient passed to `latents` unchanged."""
    return latents + (quantised - latents).detach()


def perplexity(counts: Tensor) -> Tensor:
    """Return exp of the entropy of code counts [n]: 1 when one code is used, n when all are used equally."""
    share = counts.double() / counts.double().sum().clamp(min=1)
    return torch.special.entr(share).sum().exp()


def usage(counts: Tensor) -> Tensor:
    """Return the share of codes [n] that occur at all."""
    return (counts > 0).double().mean()
