"""What the fused path saves: time and memory of masked layers and of whole steps, beside the released way."""

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.memory import peak_mib
from noiseworks.core.timing import in_turns, work_clock
from noiseworks.kits.diffusers_hosts.layouts import denoiser_of
from noiseworks.maskunet.generators import BlockMasks, BlockShape, Expander, LayerShape, key_of
from noiseworks.maskunet.masked_linear import Draw, Logits, masked_linear, naive_masked_linear
from noiseworks.maskunet.masking import MaskHandle, MaskNet, _Call
from noiseworks.maskunet.options import Bench, MaskConfig
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


_LAYERS = 4  # of the block that is timed


class NaiveHandle(MaskHandle):
    """The released way: the generator runs for every layer, all masks are made, and the layer is computed twice."""

    def _feature(self, block: str, call: _Call) -> Tensor | None:
        call.features.pop(block, None)
        return super()._feature(block, call)

    def _logits(self, block: str, path: str, call: _Call) -> Logits | Tensor:
        return released_logits(self.net.block(block), path, self._feature(block, call))

    def _product(
        self, beneath: Callable[..., Tensor], x: Tensor, layer: nn.Linear, logits: Logits, draw: Draw
    ) -> Tensor:
        beneath(x)
        return released_product(x, layer.weight, layer.bias, logits, draw)


def released_logits(masks: BlockMasks, path: str, feature: Tensor | None) -> Logits | Tensor:
    """Return a layer's logits as the released code expands them, rows first and then columns."""
    layer = masks.layers[key_of(path)]
    return layer.expanded(feature) if isinstance(layer, Expander) else masks.logits(path, feature)


def released_product(x: Tensor, weight: Tensor, bias: Tensor | None, logits: Logits, draw: Draw) -> Tensor:
    """Return `naive_masked_linear` with Gumbel noise as the released code draws it, from the global generator."""
    noise = x.new_empty(logits.rows, *weight.shape).exponential_()
    return naive_masked_linear(x, weight, bias, logits, draw, noise)


def _measured(
    arms: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, dict[str, float]]:
    times = in_turns(
        {name: _turn(work) for name, work in arms.items()}, repeats, device=device, clock=work_clock(device)
    )
    peaks = {name: peak_mib(work, device)[1] for name, work in arms.items()}
    rows = {name: {"seconds": times[name].median, "peak_mib": peaks[name]} for name in arms}
    rows["naive / fused"] = {
        "seconds": 1 / times["fused"].ratio(times["naive"]),
        "peak_mib": peaks["naive"] / peaks["fused"],
    }
    return rows


def _turn(work: Callable[[], Any]) -> Callable[[int], None]:
    def run(turn: int) -> None:
        work()

    return run


def bench_block(bench: Bench, *, training: bool = False) -> dict[str, dict[str, float]]:
    """Return seconds and peak MiB of the masked layers of one block, naive and fused, with its generator.

    Args:
        bench: Width, rows, tokens, generator, turns.
        training: Whether a backward pass belongs to it.
    """
    config = MaskConfig(generator=bench.generator, init_logit=2.0)
    width, names = bench.width, [str(k) for k in range(_LAYERS)]
    shape = BlockShape(2 * width, width, 4 * width, dict.fromkeys(names, LayerShape(width, width)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        masks, layer = BlockMasks(shape, config), nn.Linear(width, width)
        x, z, t = (torch.randn(bench.batch, *s) for s in ((bench.tokens, width), (2 * width,), (4 * width,)))
    layer.requires_grad_(False)

    def work(naive: bool) -> None:
        feature, loss = None if naive else masks.feature(z, t), 0.0
        for number, name in enumerate(names):
            if naive:
                layer(x)
            logits = (
                released_logits(masks, name, masks.feature(z, t)) if naive else masks.logits(name, feature)
            )
            product = released_product if naive else masked_linear
            out = product(x, layer.weight, layer.bias, logits, Draw(seed=number))
            loss = loss + out.square().sum() if training else loss
            del out, logits  # in a network both are gone before the next layer
        if training:
            loss.backward()
            masks.zero_grad(set_to_none=True)

    def run(naive: bool) -> None:
        with torch.set_grad_enabled(training):
            work(naive)

    arms = {"naive": partial(run, True), "fused": partial(run, False)}
    return _measured(arms, bench.repeats, torch.device("cpu"))


def bench_step(
    pipe: "DiffusionPipeline", bench: Bench, *, training: bool = False
) -> dict[str, dict[str, float]]:
    """Return seconds and peak MiB of one call of a pipeline's denoiser: without masks, naive and fused.

    Args:
        pipe: A text-to-image pipeline of the family sd.
        bench: Rows, generator, turns.
        training: Whether a backward pass to the generators belongs to it.
    """
    model = denoiser_of(pipe)
    config, device = model.config, model.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(
            bench.batch, config.in_channels, config.sample_size, config.sample_size, device=device
        )
        text = torch.randn(
            bench.batch, pipe.tokenizer.model_max_length, config.cross_attention_dim, device=device
        )
    net = MaskNet.of(model, MaskConfig(generator=bench.generator, init_logit=2.0))
    plain, fused, naive = model, copy.deepcopy(model), copy.deepcopy(model)
    for one in (plain, fused, naive):
        one.requires_grad_(False)
    handles = [
        cls(net, one, stochastic=True, hard=True, seed=0)
        for cls, one in ((MaskHandle, fused), (NaiveHandle, naive))
    ]

    def work(one: nn.Module) -> None:
        learns = training and one is not plain
        with torch.set_grad_enabled(learns):
            out = one(x, 500, encoder_hidden_states=text).sample
            if learns:
                out.square().mean().backward()
                net.zero_grad(set_to_none=True)

    try:
        arms = {
            "no masks": partial(work, plain),
            "naive": partial(work, naive),
            "fused": partial(work, fused),
        }
        return _measured(arms, bench.repeats, device)
    finally:
        for handle in handles:
            handle.detach()
