"""Vector quantisation: nearest codes, codebook loss, usage, averaged codebook, restart of dead codes."""

import torch
from noiseworks.core.checks import check_number
from torch import Tensor, nn

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


class CodebookAverage(nn.Module):
    """Codebook as a moving average of the encoder outputs assigned to each code, instead of by gradient.

    Source: appendix A.1 of the VQ-VAE paper, offered there as the alternative to the embedding loss.

    Args:
        codebook: The initial codebook [n, d].
        decay: Share kept of the old averages, in [0, 1).
        eps: Laplace smoothing of the counts, so that an unused code keeps a finite value.
    """

    def __init__(self, codebook: Tensor, decay: float = 0.99, eps: float = 1e-5) -> None:
        super().__init__()
        check_number("decay", decay, low=0, high=1, high_open=True)
        self.decay, self.eps = decay, eps
        self.register_buffer("counts", torch.ones(len(codebook)))
        self.register_buffer("sums", codebook.detach().clone())

    @torch.no_grad()
    def update(self, codebook: Tensor, counts: Tensor, sums: Tensor) -> None:
        """Average in a batch and write the codebook in place.

        Args:
            codebook: [n, d], written.
            counts: [n], vectors assigned to each code.
            sums: [n, d], their sums.
        """
        self.counts.lerp_(counts.to(self.counts), 1 - self.decay)
        self.sums.lerp_(sums.to(self.sums), 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.eps) / (total + len(codebook) * self.eps) * total
        codebook.copy_(self.sums / smoothed[:, None])


@torch.no_grad()
def restart_dead_codes(
    codebook: Tensor, counts: Tensor, latents: Tensor, generator: torch.Generator
) -> Tensor:
    """Replace codes that were not used by random encoder outputs, in place.

    Args:
        codebook: [n, d], written.
        counts: [n], how often each code was used since the last call.
        latents: [M, d] encoder outputs to draw from.
        generator: CPU generator of the draw.

    Returns:
        The indices of the replaced codes.
    """
    dead = (counts == 0).nonzero().squeeze(1)
    rows = torch.randint(len(latents), (len(dead),), generator=generator).to(latents.device)
    codebook[dead] = latents[rows].to(codebook)
    return dead
