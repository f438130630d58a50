"""The joint diffusion transformer: one token sequence of all modalities, adaLN-Zero blocks, a head a modality.

Image tokens attend to image tokens alone, so that the image branch is a predictor of video which action-free data can
train, and poses and depth read it. That is computed as one attention a group of tokens with the same view, without a
dense mask.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones.dit import DiTBlock, FinalLayer, TimestepEmbedder, modulate
from noiseworks.kits.backbones.layers import Attention, grid_positions, sinusoids
from noiseworks.pad.modalities import Modality, check_modalities
from noiseworks.pad.options import Target
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Values = Mapping[str, Tensor]


class Prediction(NamedTuple):
    """What the network says of a modality.

    Attributes:
        value: Its noise, or what it is without noise, in the shape of what is noisy.
        variance: Where the variance lies between the posterior's (-1) and beta (1), likewise; None without one.
    """

    value: Tensor
    variance: Tensor | None


class Group(NamedTuple):
    """Tokens that attend to the same tokens.

    Attributes:
        queries: Whose.
        keys: What they attend to: a slice, or numbers of tokens.
    """

    queries: slice
    keys: slice | list[int]


class JointAttention(Attention):
    """Self-attention in which a group of tokens attends to its own choice of tokens.

    Args:
        width: Channels of a token.
        heads: Attention heads.
        groups: The groups, in the order of the tokens.
    """

    def __init__(self, width: int, heads: int, groups: tuple[Group, ...]) -> None:
        super().__init__(width, heads)
        self.groups = groups

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the attended tokens [B, N, D].

        Args:
            x: Tokens [B, N, D].
            present: Which tokens may be attended to, bool [B, N]; all by default.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        parts = []
        for queries, keys in self.groups:
            mask = None if present is None else present[:, None, None, keys]
            parts.append(
                F.scaled_dot_product_attention(q[:, :, queries], k[:, :, keys], v[:, :, keys], attn_mask=mask)
            )
        return self.proj(torch.cat(parts, dim=2).transpose(1, 2).flatten(2))


class JointBlock(DiTBlock):
    """A DiT block whose attention is in groups, and whose modulation is given."""

    def __init__(self, width: int, heads: int, hidden: int, groups: tuple[Group, ...]) -> None:
        super().__init__(width, heads, hidden)
        self.attn = JointAttention(width, heads, groups)

    def forward(self, x: Tensor, modulation: Tensor, present: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, D] for tokens, the block's modulation [B, 6 D] and present tokens [B, N]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1), present)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class Embedding(nn.Module):
    """Tokens of a modality: a linear map of what is noisy and, beside it, of the present, plus fixed positions.

    The sum is one map of both together, as the paper has it; so the part of the present is computed once a plan.

    Args:
        modality: The modality.
        width: Channels of a token.
        positions: [tokens, width].
    """

    def __init__(self, modality: Modality, width: int, positions: Tensor) -> None:
        super().__init__()
        self.modality = modality
        inputs = modality.noisy + modality.clean
        if modality.kind == "grid":
            self.proj = nn.Conv2d(inputs, width, modality.patch, stride=modality.patch)
        else:
            self.proj = nn.Linear(inputs // modality.split, width)
        nn.init.xavier_uniform_(self.proj.weight.flatten(1))
        nn.init.zeros_(self.proj.bias)
        self.register_buffer("positions", positions[None], persistent=False)

    def noisy(self, values: Tensor) -> Tensor:
        """Return the noisy part's share of the tokens [B, N, D]."""
        return self._project(values, self.proj.weight[:, : self._of(self.modality.noisy)])

    def clean(self, values: Tensor | None) -> Tensor:
        """Return the present's share of the tokens with bias and positions, [B or 1, N, D]."""
        fixed = self.proj.bias + self.positions
        if not self.modality.clean:
            return fixed
        return fixed + self._project(values, self.proj.weight[:, self._of(self.modality.noisy) :])

    def _of(self, channels: int) -> int:
        return channels // self.modality.split

    def _project(self, values: Tensor, weight: Tensor) -> Tensor:
        if self.modality.kind == "grid":
            return F.conv2d(values, weight, stride=self.modality.patch).flatten(2).transpose(1, 2)
        return F.linear(values.unflatten(1, (self.modality.split, -1)), weight)


class Stem(nn.Module):
    """Convolutions that look at the whole present picture before it is cut into patches.

    They stand in for a frozen encoder. Image tokens get what is seen around their patch, tokens of vectors a summary of
    the whole picture, as policies on pictures have it; images see no poses by that.

    Args:
        image: The image's modality, whose patch is a multiple of 4.
        width: Channels of a token.
        channels: Of the first convolution; the next ones have twice as many.

    Raises:
        InputError: When the patch is no multiple of 4.
    """

    def __init__(self, image: Modality, width: int, channels: int) -> None:
        super().__init__()
        if image.patch % 4:
            raise InputError(f"a stem needs a patch that is a multiple of 4, got {image.patch}")
        self.layers = nn.Sequential(
            nn.Conv2d(image.clean, channels, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, stride=2, padding=1),
            nn.SiLU(),
        )
        quarter = image.patch // 4
        self.tokens = nn.Conv2d(2 * channels, width, quarter, stride=quarter)
        self.summary = nn.Linear(2 * channels * (image.size // 4) ** 2, width)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Return a picture's [B, C, S, S] share of image tokens [B, N, D] and of each vector's tokens [B, 1, D]."""
        seen = self.layers(picture)
        return self.tokens(seen).flatten(2).transpose(1, 2), self.summary(seen.flatten(1))[:, None]


class Modulation(NamedTuple):
    """What the condition does in every block and head, for one or several steps.

    Attributes:
        blocks: [..., B, 6 D] each.
        heads: Modality -> [..., B, 2 D].
    """

    blocks: list[Tensor]
    heads: dict[str, Tensor]

    def at(self, step: int) -> "Modulation":
        """Return that of one of several steps."""
        return Modulation([one[step] for one in self.blocks], {k: one[step] for k, one in self.heads.items()})


class PADTransformer(nn.Module):
    """Noisy futures of all modalities, their present, a timestep and a text -> the noise of each, or the clean futures.

    Args:
        modalities: What is seen and denoised, the image first.
        width: Channels of a token.
        depth: Blocks.
        heads: Attention heads.
        mlp: Hidden width of a block's MLP, in widths.
        text_width: Width of a text embedding.
        learn_sigma: Whether the variance is learned.
        zero_heads: Whether the heads of all modalities begin at zero; the reference has only the image's so.
        small_start: Whether the embedders of timestep and text begin at DiT's deviation of 0.02, or at He et al.'s.
        prediction: `epsilon`, the noise, or `sample`, what is clean.
        stem: Channels of convolutions that look at the present picture; 0 for none, as published.

    Attributes:
        gradient_checkpointing: Whether blocks are computed again in the backward pass instead of kept.

    Raises:
        InputError: When modalities do not fit together.
    """

    def __init__(
        self,
        modalities: tuple[Modality, ...],
        *,
        width: int,
        depth: int,
        heads: int,
        mlp: float = 4.0,
        text_width: int = 512,
        learn_sigma: bool = True,
        zero_heads: bool = True,
        small_start: bool = True,
        prediction: Target = "epsilon",
        stem: int = 0,
    ) -> None:
        super().__init__()
        check_modalities(modalities)
        self.prediction = prediction
        self.modalities, self.text_width, self.gradient_checkpointing = modalities, text_width, False
        self.learn_sigma = learn_sigma
        groups = _groups(modalities)
        self.embedders = nn.ModuleDict(
            {one.name: Embedding(one, width, _positions(one, modalities, width)) for one in modalities}
        )
        self.stem = Stem(modalities[0], width, stem) if stem else None
        self.t_embedder, self.text_embedder = TimestepEmbedder(width), nn.Linear(text_width, width)
        self.blocks = nn.ModuleList(JointBlock(width, heads, int(mlp * width), groups) for _ in range(depth))
        outputs = 2 if learn_sigma else 1
        self.heads = nn.ModuleDict(
            {
                one.name: FinalLayer(
                    width, outputs * one.noisy * one.patch**2 // (one.split if one.kind == "vector" else 1)
                )
                for one in modalities
                if one.noisy
            }
        )
        self._initialise(zero_heads, small_start)

    def _initialise(self, zero_heads: bool, small_start: bool) -> None:
        for part in (*self.blocks, *self.heads.values()):
            for layer in part.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2], self.text_embedder):
            if small_start:
                nn.init.normal_(layer.weight, std=0.02)
            else:
                nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        closed = [part.adaLN_modulation[1] for part in self.blocks]
        first = self.modalities[0].name
        for name, head in self.heads.items():
            if zero_heads or name == first:
                closed += [head.adaLN_modulation[1], head.linear]
        for layer in closed:
            nn.init.zeros_(layer.weight)

    def forward(
        self, noisy: Values, clean: Values, t: Tensor, text: Tensor, present: Values | None = None
    ) -> dict[str, Prediction]:
        """Return the predictions of all modalities that are denoised (section 3.2).

        Args:
            noisy: Modality -> what is noisy, [B, noisy, ...].
            clean: Modality -> its present, [B, clean, ...].
            t: Timesteps [B], one for all modalities; 0 is the least noisy.
            text: Text embeddings [B, text_width].
            present: Modality -> whether each sample has it, bool [B]; tokens of those that lack it are attended to by
                none. Modalities that are not named are there.

        Raises:
            InputError: When a modality is missing or of another shape.
        """
        self.check(noisy, clean, text)
        return self.denoise(noisy, self.embed(clean), self.modulation(t, text), self.allowed(present))

    def check(self, noisy: Values, clean: Values, text: Tensor) -> None:
        """Refuse what the network was not made for.

        Raises:
            InputError: When a modality is missing, unknown or of another shape, or the text has another width.
        """
        for kind, given in (("noisy", noisy), ("clean", clean)):
            wanted = {
                one.name: one.shape(getattr(one, kind)) for one in self.modalities if getattr(one, kind)
            }
            if missing := sorted(wanted.keys() - given.keys()):
                raise InputError(f"the model needs the {kind} {', '.join(missing)}")
            if unknown := sorted(given.keys() - wanted.keys()):
                raise InputError(f"the model has no {kind} {', '.join(unknown)}: it has {', '.join(wanted)}")
            for name, shape in wanted.items():
                if tuple(given[name].shape[1:]) != shape:
                    raise InputError(
                        f"the {kind} {name} must have shape [B, {', '.join(map(str, shape))}], got "
                        f"{list(given[name].shape)}"
                    )
        if text.ndim != 2 or text.shape[1] != self.text_width:
            raise InputError(
                f"text embeddings must have shape [B, {self.text_width}], got {list(text.shape)}"
            )

    def embed(self, clean: Values) -> dict[str, Tensor]:
        """Return the present's share of all tokens, which no step of a plan changes."""
        found = {name: layer.clean(clean.get(name)) for name, layer in self.embedders.items()}
        if self.stem is not None:
            image = self.modalities[0].name
            around, whole = self.stem(clean[image])
            for one in self.modalities:
                if one.name == image or one.kind == "vector":
                    found[one.name] = found[one.name] + (around if one.name == image else whole)
        return found

    def modulation(self, t: Tensor, text: Tensor) -> Modulation:
        """Return every block's and head's modulation for timesteps [B] or [S, 1], and texts [B, text_width]."""
        times = self.t_embedder(t.flatten()).unflatten(0, t.shape)
        c = times + self.text_embedder(text)
        return Modulation(
            [block.adaLN_modulation(c) for block in self.blocks],
            {name: head.adaLN_modulation(c) for name, head in self.heads.items()},
        )

    def allowed(self, present: Values | None) -> Tensor | None:
        """Return which tokens may be attended to, bool [B, N]; None for all."""
        if present is None or all(bool(rows.all()) for rows in present.values()):
            return None
        rows = next(iter(present.values()))
        parts = [
            present.get(one.name, torch.ones_like(rows))[:, None].expand(-1, one.tokens)
            for one in self.modalities
        ]
        return torch.cat(parts, dim=1)

    def denoise(
        self, noisy: Values, base: Values, modulation: Modulation, allowed: Tensor | None = None
    ) -> dict[str, Prediction]:
        """Return the predictions for noisy values, `embed`'s tokens, one step's modulation and `allowed` tokens."""
        batch = len(modulation.blocks[0])
        tokens = []
        for one in self.modalities:
            found = base[one.name]
            if one.noisy:
                found = found + self.embedders[one.name].noisy(noisy[one.name])
            tokens.append(found.expand(batch, -1, -1))
        x = torch.cat(tokens, dim=1)
        for block, six in zip(self.blocks, modulation.blocks, strict=True):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, six, allowed, use_reentrant=False)
            else:
                x = block(x, six, allowed)
        first, found = 0, {}
        for one in self.modalities:
            if one.noisy:
                part = x[:, first : first + one.tokens]
                found[one.name] = self._head(one, part, modulation.heads[one.name])
            first += one.tokens
        return found

    def _head(self, one: Modality, tokens: Tensor, modulation: Tensor) -> Prediction:
        head = self.heads[one.name]
        out = head.linear(modulate(head.norm_final(tokens), *modulation.chunk(2, dim=1)))
        if one.kind == "grid":
            out = out.unflatten(1, (one.side, one.side)).unflatten(-1, (one.patch, one.patch, -1))
            out = out.permute(0, 5, 1, 3, 2, 4).reshape(len(out), -1, one.size, one.size)
            halves = out.split(one.noisy, dim=1)
        else:
            halves = tuple(half.flatten(1) for half in out.split(one.noisy // one.split, dim=2))
        return Prediction(halves[0], halves[1] if self.learn_sigma else None)


def _groups(modalities: tuple[Modality, ...]) -> tuple[Group, ...]:
    """Return the groups of neighbouring modalities with the same view."""
    ranges, first = {}, 0
    for one in modalities:
        ranges[one.name] = range(first, first + one.tokens)
        first += one.tokens
    groups: list[Group] = []
    for one in modalities:
        keys = [i for name, own in ranges.items() if one.sees is None or name in one.sees for i in own]
        joined = slice(keys[0], keys[-1] + 1) if len(keys) == keys[-1] + 1 - keys[0] else keys
        start = ranges[one.name].start
        if groups and groups[-1].keys == joined:
            start = groups.pop().queries.start
        groups.append(Group(slice(start, ranges[one.name].stop), joined))
    return tuple(groups)


def _positions(one: Modality, modalities: tuple[Modality, ...], width: int) -> Tensor:
    """Return fixed positions [tokens, width]: a coarser grid has those of the finest one, every so many."""
    if one.kind == "vector":
        return sinusoids(torch.arange(one.split), width).float()
    finest = max(other.side for other in modalities if other.kind == "grid")
    table = grid_positions(finest, width).unflatten(0, (finest, finest))
    return table[:: finest // one.side, :: finest // one.side].flatten(0, 1)
