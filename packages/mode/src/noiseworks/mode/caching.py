"""Expert caching: routing depends on the noise level alone, so the experts of every step are known beforehand.

The cache is keyed by the noise level as a Python float of the sampling grid, that is by step, never by a value
that is computed on the device: it hits for every batch size and waits for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from noiseworks.core.checks import check_choice, check_finite
from noiseworks.core.errors import InputError
from noiseworks.mode.config import Form
from noiseworks.mode.experts import Merged, SwiGLU, merge_inputs, merge_outputs
from noiseworks.mode.network import Block, MoDEDenoiser
from noiseworks.mode.routing import probabilities, select_experts
from torch import Tensor, nn

SAMPLED = 64  # numbers of each weight that tell of writes past PyTorch's count


class CachedStep(NamedTuple):
    """What is known of a noise level: its embedding [1, 1, D] and one MLP per block."""

    n: Tensor
    merged: list[Merged]


@dataclass(frozen=True)
class CacheReport:
    """What a cache holds.

    Attributes:
        steps: Noise levels.
        layers: Blocks.
        pairs: Different choices of experts, over all blocks.
        form: merged or bmm.
        bytes: Memory of the copied weights.
        hits: Denoiser calls that the cache answered.
        misses: Calls at a level that is not in the cache, which were routed.
        rebuilds: How often weights had changed and the cache was made anew.
    """

    steps: int
    layers: int
    pairs: int
    form: str
    bytes: int
    hits: int
    misses: int
    rebuilds: int

    @property
    def hit_rate(self) -> float:
        """Share of the calls that the cache answered; 1 before the first."""
        return self.hits / max(1, self.hits + self.misses) if self.misses else 1.0


def check_cacheable(denoiser: MoDEDenoiser) -> None:
    """Refuse a model whose experts are not known from the noise level.

    Raises:
        InputError: When it is dense, or its routers see the goal or the tokens.
    """
    if denoiser.config.dense:
        raise InputError("a dense model has no experts to cache")
    if denoiser.config.routing != "noise":
        raise InputError(
            f"experts are known beforehand only when routed by noise, this model routes by {denoiser.config.routing}"
        )


@torch.no_grad()
def routing_table(denoiser: MoDEDenoiser, sigmas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the experts and their weights that evaluation uses at noise levels.

    Args:
        denoiser: A model routed by noise.
        sigmas: N levels above 0.

    Returns:
        ids, int64 [L, N, k] ascending in k, and gates [L, N, k].

    Raises:
        NonFiniteError: When a router's output is NaN or infinite.
    """
    check_cacheable(denoiser)
    device = denoiser.pos_emb.device
    ids, gates = [], []
    for block in denoiser.blocks:
        rows = [_route(block, denoiser.noise_embedding(torch.tensor([s], device=device))) for s in sigmas]
        ids.append(torch.cat([row[0] for row in rows]))
        gates.append(torch.cat([row[1] for row in rows]))
    return torch.stack(ids), torch.stack(gates)


def _route(block: Block, n: Tensor) -> tuple[Tensor, Tensor]:
    logits = block.router(n[:, 0])
    check_finite("the router's output", logits)
    probs = probabilities(logits)
    ids, gates = select_experts(probs, block.config.routed_k)
    ids, order = ids.sort(dim=-1)
    return ids, gates.gather(-1, order)


def usage_table(denoiser: MoDEDenoiser, sigmas: Sequence[float]) -> Tensor:
    """Return the weight of each expert at noise levels, [L, N, E]; 0 where it is not chosen, rows of sum 1."""
    ids, gates = routing_table(denoiser, sigmas)
    usage = gates.new_zeros(*ids.shape[:2], denoiser.config.num_routed)
    return usage.scatter(-1, ids, gates).cpu()


class Stamp:
    """What a denoiser's weights were: versions, places and types, the number of `train()` calls, and some values.

    PyTorch counts changes of a parameter but for writes through `parameter.data`; these are told by up to 64 numbers of
    each weight, evenly spaced. A write that misses all of them (to single numbers) goes unseen.
    """

    def __init__(self, denoiser: MoDEDenoiser) -> None:
        self._denoiser = denoiser
        self._counts = self._counted()
        weights = [p.detach().flatten() for p in denoiser.parameters()]
        # Views of the weights themselves, so that later they hold what the weights hold then.
        self._views = [w[:: -(-len(w) // SAMPLED)] for w in weights]
        self._values = torch.cat(self._views)

    def _counted(self) -> tuple:
        found = self._denoiser.parameters()
        counts = ((id(p), p._version, p.data_ptr(), p.dtype, p.device) for p in found)
        return (self._denoiser.trainings, *counts)

    def outdated(self) -> bool:
        """Return whether the weights have changed or moved, or the model was in training mode since."""
        return self._counted() != self._counts or not torch.equal(torch.cat(self._views), self._values)


class ExpertCache:
    """Merged experts of every noise level of a grid.

    Args:
        denoiser: A model routed by noise, in evaluation mode.
        sigmas: The levels at which a sampler calls it, all above 0.
        form: `merged` concatenates the k experts into one MLP with the mixture's weights in its second layer: a copy
            of the first layers per choice of experts, and of the second per level. `bmm` stacks the k experts, once
            per choice, for a batched product: less memory.

    Raises:
        InputError: When the model cannot be cached, is in training mode, or a level is not above 0.
    """

    def __init__(self, denoiser: MoDEDenoiser, sigmas: Sequence[float], form: Form = "merged") -> None:
        check_choice("form", form, ("merged", "bmm"))
        check_cacheable(denoiser)
        if denoiser.training:
            raise InputError("a model in training mode draws its experts: call eval() before caching")
        if not sigmas or min(sigmas) <= 0:
            raise InputError(f"cached noise levels must be above 0, got {list(sigmas)}")
        self.denoiser, self.sigmas, self.form = denoiser, tuple(dict.fromkeys(sigmas)), form
        self.hits = self.misses = self.rebuilds = 0
        self._build()

    # Normal tensors wherever it is called from: a compiled network tells them apart.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _build(self) -> None:
        self._stamp = Stamp(self.denoiser)
        ids, gates = routing_table(self.denoiser, self.sigmas)
        device = self.denoiser.pos_emb.device
        self._shared: dict[tuple, tuple[Tensor, ...]] = {}
        self._steps: dict[float, CachedStep] = {}
        for j, sigma in enumerate(self.sigmas):
            n = self.denoiser.noise_embedding(torch.tensor([sigma], device=device))
            merged = [
                self._merge(i, block, ids[i, j].tolist(), gates[i, j])
                for i, block in enumerate(self.denoiser.blocks)
            ]
            self._steps[sigma] = CachedStep(n, merged)

    def _merge(self, layer: int, block: Block, ids: list[int], gates: Tensor) -> Merged:
        chosen = [block.experts[i] for i in ids]
        real = [i for i, expert in enumerate(chosen) if isinstance(expert, SwiGLU)]
        identity = sum(float(gates[i]) for i, e in enumerate(chosen) if isinstance(e, nn.Identity))
        experts, weights = [chosen[i] for i in real], gates[real]
        key = (layer, *ids)
        if self.form == "merged":
            if key not in self._shared:
                self._shared[key] = merge_inputs(experts)
            return Merged(*self._shared[key], merge_outputs(experts, weights.tolist()), None, identity)
        if key not in self._shared:
            self._shared[key] = (
                torch.stack([e.project.weight.T for e in experts]),
                torch.stack([e.project.bias[None] for e in experts]),
                torch.stack([e.out.weight.T for e in experts]),
            )
        w_in, b_in, w_out = self._shared[key]
        return Merged(w_in, b_in, w_out, weights.to(w_out)[:, None, None], identity)

    def refresh(self) -> None:
        """Make the cache anew when weights have changed or moved, or the model was in training mode since."""
        if self._stamp.outdated():
            self.rebuilds += 1
            self._build()

    def look_up(self, sigma: float) -> CachedStep | None:
        """Return what is known of a level, or None, and count it."""
        found = self._steps.get(sigma)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def report(self) -> CacheReport:
        """Return sizes and counts."""
        tensors = {t.data_ptr(): t for s in self._steps.values() for m in s.merged for t in m[:3]}
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        return CacheReport(
            len(self.sigmas),
            len(self.denoiser.blocks),
            len(self._shared),
            self.form,
            size,
            self.hits,
            self.misses,
            self.rebuilds,
        )
