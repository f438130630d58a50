"""Masks on a denoiser's linear layers: which layers, what they see, and how they attach (nothing of the host changes).

Two things are heard while the denoiser runs: the output of its timestep embedding and the input of each masked block. A
block's generator runs once a block, and its layers' `forward` is replaced, so that no layer is computed twice.
"""

import hashlib
import inspect
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import ArtifactError, InputError, UnsupportedHostError, last_line
from noiseworks.core.noise import mix64
from noiseworks.kits.attachments import Attachment, Wrap, attach
from noiseworks.kits.diffusers_hosts.layouts import denoiser_of
from noiseworks.kits.weight_masks import linear_of
from noiseworks.maskunet.generators import BlockMasks, BlockShape, LayerShape, key_of
from noiseworks.maskunet.gumbel import gumbel_sigmoid
from noiseworks.maskunet.masked_linear import Draw, Logits, masked_linear
from noiseworks.maskunet.options import MaskConfig
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

KIND = "maskunet/masks"
NAME = "maskunet"
# Components of the path of a U-Net's linear layers that are left alone, as in the released code.
_LEFT = {"time_emb_proj", "ff", "conv_shortcut", "proj_in", "proj_out"}
_BLOCKS = r"^(?:(?:up|down)_blocks|transformer_blocks|single_transformer_blocks)\.\d+|^mid_block"
_EMBEDDERS = ("time_embedding", "timestep_embedder")


def masked_layers(model: nn.Module, targets: str = "auto") -> dict[str, list[str]]:
    """Return the paths of the layers that are masked, by the path of their block.

    Args:
        model: A UNet or transformer of diffusers.
        targets: See `MaskConfig`.

    Raises:
        InputError: When no layer matches.
    """
    is_unet = hasattr(model, "up_blocks")
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        block = re.match(_BLOCKS, path)
        if not isinstance(module, nn.Linear) or block is None or "lora_" in path:
            continue
        path = path.removesuffix(".base_layer")
        parts = path.split(".")
        if targets != "auto":
            chosen = re.search(targets, path) is not None
        elif is_unet:
            chosen = parts[0] == "up_blocks" and not _LEFT & set(parts)
        else:
            chosen = any(part.startswith("attn") for part in parts)
        if chosen:
            found.setdefault(block[0], []).append(path)
    if not found:
        raise InputError(f"{type(model).__name__} has no linear layer that targets {targets!r} matches")
    return found


def block_shapes(model: nn.Module, targets: str = "auto") -> dict[str, BlockShape]:
    """Return the masked blocks of a denoiser and their layers' shapes.

    Raises:
        InputError: When no layer matches.
        UnsupportedHostError: When a layer is quantised, or the model has no timestep embedding.
    """
    _, embedder = embedder_of(model)
    found = {}
    for block, paths in masked_layers(model, targets).items():
        layers = {}
        for path in paths:
            layer, parts = linear_of(model, path), path.split(".")
            own = next((k for k, part in enumerate(parts) if part.startswith(("attn", "attentions"))), None)
            parents = [".".join(parts[:k]) for k in range(len(parts) - 1, 0, -1)]
            heads = next((model.get_submodule(p).heads for p in parents if _is_attention(model, p)), 0)
            layers[path] = LayerShape(
                layer.out_features,
                layer.in_features,
                0 if own is None else heads,
                "to_out" in parts or "to_add_out" in parts,
            )
        module = model.get_submodule(block)
        if hasattr(module, "resnets"):
            conv = module.resnets[0].conv1
            features, outs = conv.in_channels, conv.out_channels
        else:
            features = outs = model.config.num_attention_heads * model.config.attention_head_dim
        found[block] = BlockShape(features, outs, embedder.linear_2.out_features, layers)
    return found


def _is_attention(model: nn.Module, path: str) -> bool:
    return isinstance(getattr(model.get_submodule(path), "heads", None), int)


def embedder_of(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the path of a denoiser's timestep embedding, and the module.

    Raises:
        UnsupportedHostError: When it has none.
    """
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in _EMBEDDERS and hasattr(module, "linear_2"):
            return path, module
    raise UnsupportedHostError(f"{type(model).__name__} has no timestep embedding that masks could follow")


def fingerprint_of(model: nn.Module, paths: list[str]) -> str:
    """Return a hash of the masked layers' shapes and of some of their weights, at the precision of bfloat16."""
    found = hashlib.sha256()
    for path in sorted(paths):
        weight = linear_of(model, path).weight.detach()
        found.update(f"{path}{tuple(weight.shape)}".encode())
        found.update(weight.flatten()[:32].to(torch.bfloat16).float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


class MaskNet(nn.Module):
    """The generators of all masked blocks of one denoiser; small, and all that is trained or saved.

    Args:
        shapes: The blocks.
        config: The configuration.
        fingerprint: Of the denoiser's weights.
    """

    def __init__(self, shapes: Mapping[str, BlockShape], config: MaskConfig, fingerprint: str = "") -> None:
        super().__init__()
        self.config, self.fingerprint, self.shapes = config, fingerprint, dict(shapes)
        self.blocks = nn.ModuleDict({key_of(path): BlockMasks(one, config) for path, one in shapes.items()})

    @classmethod
    def of(
        cls, host: "DiffusionPipeline | nn.Module", config: MaskConfig = MaskConfig(), seed: int = 0
    ) -> Self:
        """Return new masks for a pipeline or denoiser, on its device and in float32.

        Args:
            host: The pipeline, its UNet or its transformer.
            config: The configuration.
            seed: Of the generators' weights.
        """
        model = _model(host)
        shapes = block_shapes(model, config.targets)
        paths = [path for one in shapes.values() for path in one.layers]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix64(seed) >> 1)
            made = cls(shapes, config, fingerprint_of(model, paths))
        return made.to(next(model.parameters()).device)

    def block(self, path: str) -> BlockMasks:
        """Return the generator of a block."""
        return self.blocks[key_of(path)]

    def attach(
        self,
        host: "DiffusionPipeline | nn.Module",
        *,
        stochastic: bool = False,
        hard: bool = True,
        seed: int = 0,
    ) -> "MaskHandle":
        """Let a denoiser run with these masks.

        Args:
            host: The pipeline, its UNet or its transformer, whose weights are those that the masks are of.
            stochastic: Whether masks are drawn, anew at every call of the denoiser.
            hard: Whether masks are 0 or 1.
            seed: Of drawn masks.

        Raises:
            InputError: When the masks are of another model, or masks are attached already.
        """
        model = _model(host)
        paths = [path for one in self.shapes.values() for path in one.layers]
        try:
            own = fingerprint_of(model, paths)
        except (InputError, UnsupportedHostError) as error:
            raise InputError(f"the masks are of another model: {error}") from None
        if own != self.fingerprint:
            raise InputError(
                f"the masks are of another model: they were made for weights {self.fingerprint}, these are {own}"
            )
        return MaskHandle(self, model, stochastic=stochastic, hard=hard, seed=seed)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the generators to a folder, atomically; the host's weights are not in it."""
        config = {
            "config": asdict(self.config),
            "fingerprint": self.fingerprint,
            "shapes": {name: asdict(one) for name, one in self.shapes.items()},
        }
        save_artifact(path, KIND, config, {name: t.detach().cpu() for name, t in self.state_dict().items()})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Read masks that `save_pretrained` wrote.

        Raises:
            ArtifactError: When the folder is missing, corrupt or of another kind.
        """
        found, tensors = load_artifact(path, KIND, loose=())
        try:
            shapes = {
                name: BlockShape(**{**one, "layers": {k: LayerShape(**v) for k, v in one["layers"].items()}})
                for name, one in found["shapes"].items()
            }
            made = cls(shapes, MaskConfig(**found["config"]), str(found["fingerprint"]))
            made.load_state_dict(tensors)
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            said = last_line(error)
            raise ArtifactError(f"the masks in {path} are corrupt ({said}); train them again") from error
        return made


def _model(host: "DiffusionPipeline | nn.Module") -> nn.Module:
    return host if isinstance(host, nn.Module) else denoiser_of(host)


@dataclass
class _Call:
    """What is known of the denoiser's call that is going on, in one thread."""

    number: int
    seed: int = 0
    times: Tensor | None = None
    pooled: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor | None] = field(default_factory=dict)


@dataclass
class Recorder:
    """What masks did: filled by a handle whose `recorder` it is.

    Attributes:
        sparsity: Share of a layer's weights that were off, a value a call of the denoiser, by layer.
        changed: Share of its bits that differ from those of the call before.
        sums: Sum of all masks of a layer over calls and rows, `[out, in]` (units for rows and heads).
        counts: Masks in that sum.
    """

    sparsity: dict[str, list[float]] = field(default_factory=dict)
    changed: dict[str, list[float]] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    _last: dict[str, Tensor] = field(default_factory=dict)

    def add(self, path: str, mask: Tensor) -> None:
        """Take in the masks of one call, [B, ...]."""
        self.sparsity.setdefault(path, []).append(float((mask == 0).float().mean()))
        if path in self._last and self._last[path].shape == mask.shape:
            self.changed.setdefault(path, []).append(float((mask != self._last[path]).float().mean()))
        self._last[path] = mask
        self.sums[path] = self.sums.get(path, 0) + mask.sum(0)
        self.counts[path] = self.counts.get(path, 0) + len(mask)


class MaskHandle:
    """Attached masks; a context manager that detaches at its end. `detach` may be called in any order.

    Attributes:
        net: The generators.
        stochastic: Whether masks are drawn.
        hard: Whether masks are 0 or 1.
        seed: Of drawn masks; the call's number and the layer's path are mixed into it.
        recorder: Takes in all masks while it is not None, which makes them in memory.
    """

    def __init__(self, net: MaskNet, model: nn.Module, *, stochastic: bool, hard: bool, seed: int) -> None:
        self.net, self.stochastic, self.hard, self.seed = net, stochastic, hard, seed
        self.recorder: Recorder | None = None
        self._calls = threading.local()
        self._latest = _Call(-1)  # for backward passes that run in a thread of their own
        path, embedder = embedder_of(model)
        # A block that embeds the timestep itself knows it only when its layers run.
        self._lazy = {block for block in net.shapes if path.startswith(f"{block}.")}
        parts = [Wrap(embedder, self._hear_time)]
        for block, shape in net.shapes.items():
            module = model.get_submodule(block)
            parts.append(Wrap(module, self._hear_block(block, inspect.signature(module.forward))))
            for layer in shape.layers:
                parts.append(
                    Wrap(linear_of(model, layer), self._layer(block, layer, linear_of(model, layer)))
                )
        self._attachment: Attachment = attach(NAME, parts)

    @property
    def attached(self) -> bool:
        """Whether `detach` has not been called yet."""
        return self._attachment.attached

    def detach(self) -> None:
        """Take the masks off: the denoiser is bit for bit what it was. A second call does nothing."""
        self._attachment.detach()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()

    def reseed(self, seed: int) -> None:
        """Draw masks from another seed from the next call on, whose number is 0 again."""
        self.seed, self._latest = seed, _Call(-1)
        self._calls.__dict__.clear()

    def _call(self) -> _Call:
        if "call" not in self._calls.__dict__:
            self._calls.call = _Call(
                self._latest.number, self._latest.seed, self._latest.times, dict(self._latest.pooled)
            )
        return self._calls.call

    def _hear_time(self, beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        times = beneath(*args, **kwargs)
        before = self._call()
        kept = {block: pooled for block, pooled in before.pooled.items() if block in self._lazy}
        number = before.number + 1
        self._calls.call = self._latest = _Call(number, mix64(self.seed, number) >> 2, times, kept)
        return times

    def _hear_block(self, block: str, signature: inspect.Signature) -> Callable[..., Any]:
        def forward(beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            pooled = _pool(given["hidden_states"])
            if "res_hidden_states_tuple" in given:
                pooled = torch.cat([pooled, _pool(given["res_hidden_states_tuple"][-1])], dim=1)
            call = self._call()
            call.pooled[block] = pooled
            call.features.pop(block, None)
            if block not in self._lazy:
                self._feature(block, call)
            return beneath(*args, **kwargs)

        return forward

    def _feature(self, block: str, call: _Call) -> Tensor | None:
        if block not in call.features:
            call.features[block] = self.net.block(block).feature(call.pooled[block], call.times)
        return call.features[block]

    def _logits(self, block: str, path: str, call: _Call) -> Logits | Tensor:
        return self.net.block(block).logits(path, self._feature(block, call))

    def _product(
        self, beneath: Callable[..., Tensor], x: Tensor, layer: nn.Linear, logits: Logits, draw: Draw
    ) -> Tensor:
        return masked_linear(x, layer.weight, layer.bias, logits, draw)

    def _draw(self, stream: int, call: _Call) -> Draw:
        config = self.net.config
        seed = call.seed + stream if self.stochastic else None
        return Draw(config.tau, config.threshold, seed, 0, self.hard)

    def _layer(self, block: str, path: str, layer: nn.Linear) -> Callable[..., Tensor]:
        shape = self.net.shapes[block].layers[path]
        head = self.net.config.granularity == "head"
        stream = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8]) >> 2

        def forward(beneath: Callable[..., Tensor], x: Tensor) -> Tensor:
            call = self._call()
            if block not in call.pooled:
                raise InputError(f"{path} was called outside of its block: masks see what {block} is given")
            logits = self._logits(block, path, call)
            rows = logits.rows if isinstance(logits, Logits) else len(logits)
            if rows not in (1, len(x)):
                raise InputError(
                    f"the masks of {path} are for {rows} batch rows, the input has {len(x)}: detach what changes the "
                    "batch inside the denoiser"
                )
            draw = self._draw(stream, call)
            if isinstance(logits, Logits):
                if self.recorder is not None:
                    self.recorder.add(path, _mask_of(logits.whole(), draw))
                with torch.autocast(x.device.type, enabled=False):  # logits are compared in float32
                    return self._product(beneath, x.to(layer.weight), layer, logits, draw)
            mask = _mask_of(logits, draw, detach=False)
            if self.recorder is not None:
                self.recorder.add(path, mask.detach())
            if not mask.requires_grad and bool((mask == 1).all()):
                return beneath(x)
            inputs = head and shape.heads_in and bool(shape.heads)
            scale = mask.repeat_interleave((shape.ins if inputs else shape.outs) // mask.shape[1], dim=1)
            scale = scale.view(len(scale), *[1] * (x.ndim - 2), -1).to(x)
            if inputs:
                return beneath(x * scale)
            out = nn.functional.linear(x, layer.weight) * scale
            return out if layer.bias is None else out + layer.bias

        return forward


def _pool(z: Tensor) -> Tensor:
    """Return GAP(z) [B, C] of images [B, C, H, W] or tokens [B, N, C], in float32."""
    return z.float().mean((2, 3)) if z.ndim == 4 else z.float().mean(1)


def _mask_of(logits: Tensor, draw: Draw, detach: bool = True) -> Tensor:
    found = logits.detach() if detach else logits
    shape = found.shape if found.ndim == 3 else (*found.shape, 1)
    noise = draw.noise(shape, found.device)
    noise = None if noise is None else noise.view(found.shape)
    return gumbel_sigmoid(found, noise, tau=draw.tau, threshold=draw.threshold, hard=draw.hard)


def fold(model: nn.Module, recorder: Recorder) -> None:
    """Multiply the weights of masked layers by their mean mask, in place: masks that cost nothing any more.

    What depended on the timestep or the sample becomes its mean over what was recorded.

    Args:
        model: A denoiser, usually a copy; nothing is attached.
        recorder: Of runs with masks of elements or rows.

    Raises:
        InputError: When nothing was recorded, or masks of heads, which do not lie on one layer's rows.
    """
    if not recorder.sums:
        raise InputError("nothing was recorded: run the pipeline while a handle's recorder is set")
    with torch.no_grad():
        for path, total in recorder.sums.items():
            weight, mean = linear_of(model, path).weight, total / recorder.counts[path]
            if mean.ndim == 1:
                if len(mean) != len(weight):
                    raise InputError("masks of heads cannot be folded: take granularity row or element")
                mean = mean[:, None]
            weight.mul_(mean.to(weight))
