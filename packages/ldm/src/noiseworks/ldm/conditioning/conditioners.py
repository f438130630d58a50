"""Conditioners: from a batch to what the U-Net sees (section 3.3 of the paper; one class a modality).

A conditioner reads its own keys of a batch and returns a `Condition`. `drop` marks the rows whose condition
is replaced by the null condition, for classifier-free guidance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from torch import Tensor, nn

Box = tuple[int, float, float, float, float]
KINDS = ("none", "concat", "crossattn", "adm")


@dataclass(frozen=True)
class Condition:
    """What the U-Net sees beside the noisy latent.

    Attributes:
        concat: Maps joined to the latent's channels, `[B, C', h, w]`.
        crossattn: A sequence for cross-attention, `[B, L, D]`.
        adm: Class labels `[B]` (int64) or vectors `[B, D]`, added to the time embedding.
    """

    concat: Tensor | None = None
    crossattn: Tensor | None = None
    adm: Tensor | None = None

    def map(self, function) -> "Condition":
        """Return the condition with `function` applied to every part that is there."""
        return Condition(
            *(None if part is None else function(part) for part in (self.concat, self.crossattn, self.adm))
        )

    def join(self, other: "Condition") -> "Condition":
        """Return self's rows followed by other's; both have the same parts."""

        def cat(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else torch.cat([a, b])

        return Condition(
            cat(self.concat, other.concat), cat(self.crossattn, other.crossattn), cat(self.adm, other.adm)
        )


class Conditioner(nn.Module):
    """Base of the conditioners.

    Attributes:
        kind: How the U-Net takes the condition, one of `KINDS`.
        default_drop: Share of training rows with the null condition unless the trainer is told otherwise.
    """

    kind: str = "none"
    default_drop: float = 0.0

    def forward(self, batch: Mapping[str, Any], drop: Tensor | None = None) -> Condition:
        """Return the condition of a batch.

        Args:
            batch: The conditioner's keys are described by its class.
            drop: Rows that get the null condition, bool `[B]`.
        """
        raise NotImplementedError


def _drop_rows(values: Tensor, null: Tensor, drop: Tensor | None) -> Tensor:
    """Return `values` `[B, ...]` with the rows marked by `drop` `[B]` replaced by `null` (broadcast)."""
    if drop is None:
        return values
    return torch.where(drop.view(-1, *[1] * (values.ndim - 1)), null.to(values.device), values)


class ClassConditioner(Conditioner, ModelMixin, ConfigMixin):
    """Class labels: one learned token for cross-attention (the paper's ImageNet model) or the time embedding.

    Batch key: `"label"`, int64 `[B]` in [0, num_classes). Class `num_classes` is the null class.

    Args:
        num_classes: Number of real classes.
        dim: Width of the token, the U-Net's `cross_attention_dim`; unused for `kind="adm"`.
        kind: `"crossattn"`, or `"adm"` with the table inside a U-Net of `num_class_embeds=num_classes + 1`.
    """

    default_drop = 0.1

    @register_to_config
    def __init__(self, num_classes: int, dim: int = 512, kind: str = "crossattn") -> None:
        super().__init__()
        check_number("num_classes", num_classes, low=1, integer=True)
        check_choice("kind", kind, ("crossattn", "adm"))
        self.num_classes, self.dim, self.kind = num_classes, dim, kind
        if kind == "crossattn":
            self.embedding = nn.Embedding(num_classes + 1, dim)

    def forward(self, batch: Mapping[str, Any], drop: Tensor | None = None) -> Condition:
        """Return one token `[B, 1, dim]`, or the labels `[B]` for `kind="adm"`.

        Raises:
            InputError: When a label is out of range.
        """
        labels = batch["label"]
        if labels.min() < 0 or labels.max() > self.num_classes:
            raise InputError(
                f"labels must lie in 0..{self.num_classes - 1} ({self.num_classes} is the null class), "
                f"got {labels.min().item()}..{labels.max().item()}"
            )
        labels = _drop_rows(labels, torch.tensor(self.num_classes), drop)
        if self.kind == "adm":
            return Condition(adm=labels)
        return Condition(crossattn=self.embedding(labels)[:, None])


class TextConditioner(Conditioner):
    """Captions through a transformers text encoder, frozen or trained along; the null caption is empty.

    Batch keys: `"input_ids"`, int64 `[B, max_length]` from `tokenize` (fast: tokenise a data set once), or
    `"caption"`, a list of B strings. No attention mask is used, as in `StableDiffusionPipeline`.

    Args:
        text_encoder: A transformers encoder whose first output is `[B, L, D]` (CLIPTextModel, BertModel,
            ...).
        tokenizer: Its tokenizer.
        trained: Whether the encoder trains along with the U-Net (the paper's text model) or is frozen.
        max_length: Tokens of a caption with its special tokens; by default the tokenizer's limit.
        truncate: Whether longer captions are cut; by default they are refused.
    """

    kind = "crossattn"
    default_drop = 0.1

    def __init__(
        self,
        text_encoder: nn.Module,
        tokenizer: Any,
        *,
        trained: bool = True,
        max_length: int | None = None,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.trained, self.truncate = trained, truncate
        self.max_length = max_length or tokenizer.model_max_length
        text_encoder.requires_grad_(trained)
        self.dim = text_encoder.config.hidden_size
        self.register_buffer("null_ids", self.tokenize([""])[0], persistent=False)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Return token ids, int64 `[len(captions), max_length]`.

        Raises:
            InputError: When a caption is longer than the limit and `truncate` is False.
        """
        if not self.truncate:
            lengths = [len(ids) for ids in self.tokenizer(list(captions), verbose=False)["input_ids"]]
            longest = max(range(len(lengths)), key=lengths.__getitem__)
            if lengths[longest] > self.max_length:
                raise InputError(
                    f"a caption of {lengths[longest]} tokens exceeds the limit of {self.max_length}: "
                    f"{captions[longest][:60]!r}; shorten it or set truncate=True"
                )
        return self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            return_tensors="pt",
        )["input_ids"]

    def forward(self, batch: Mapping[str, Any], drop: Tensor | None = None) -> Condition:
        """Return the encoder's states `[B, max_length, D]`."""
        ids = batch["input_ids"] if "input_ids" in batch else self.tokenize(batch["caption"])
        ids = _drop_rows(ids.to(self.null_ids.device), self.null_ids, drop)
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            return Condition(crossattn=self.text_encoder(ids)[0])

    def train(self, mode: bool = True) -> "TextConditioner":
        """Set the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if not self.trained:
            self.text_encoder.eval()
        return self


class LayoutConditioner(Conditioner, ModelMixin, ConfigMixin):
    """Boxes with classes, as tokens through a transformer that trains along (the paper's layout model).

    The token format is this package's own: an object is five tokens, (class, x0, y0, x1, y1), its corners in
    cells of a G x G grid: token 0 pads, tokens 1..K are classes, token K + 1 + g is grid cell g. A layout
    of at most `max_objects` objects is padded to `5 * max_objects` tokens; the null layout is all padding.

    Batch keys: `"layout_ids"`, int64 `[B, 5 * max_objects]` from `tokenize`, or `"layout"`, B lists of
    (class, x0, y0, x1, y1) with corners in [0, 1].

    Args:
        num_classes: K.
        grid: G.
        max_objects: Objects of the longest layout; 18 gives 90 tokens.
        dim: Width of the transformer, the U-Net's `cross_attention_dim`.
        num_layers: Depth of the transformer.
        num_heads: Heads of the transformer.
    """

    kind = "crossattn"
    default_drop = 0.1

    @register_to_config
    def __init__(
        self,
        num_classes: int,
        grid: int = 64,
        max_objects: int = 18,
        dim: int = 512,
        num_layers: int = 16,
        num_heads: int = 8,
    ) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        for name, value in (("num_classes", num_classes), ("grid", grid), ("max_objects", max_objects)):
            check_number(name, value, low=1, integer=True)
        self.dim = dim
        self.encoder = BertModel(
            BertConfig(
                vocab_size=1 + num_classes + grid,
                hidden_size=dim,
                num_hidden_layers=num_layers,
                num_attention_heads=num_heads,
                intermediate_size=4 * dim,
                max_position_embeddings=5 * max_objects,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                pad_token_id=0,
            ),
            add_pooling_layer=False,
        )

    def tokenize(self, layouts: Sequence[Sequence[Box]]) -> Tensor:
        """Return token ids, int64 `[len(layouts), 5 * max_objects]`.

        Raises:
            InputError: When a layout has too many objects, or a class or corner is out of range.
        """
        config = self.config
        ids = torch.zeros(len(layouts), 5 * config.max_objects, dtype=torch.int64)
        for row, layout in enumerate(layouts):
            if len(layout) > config.max_objects:
                raise InputError(f"layout {row} has {len(layout)} objects, the limit is {config.max_objects}")
            for place, (label, *corners) in enumerate(layout):
                check_number(
                    f"class in layout {row}", label, low=0, high=config.num_classes - 1, integer=True
                )
                for corner in corners:
                    check_number(f"corner in layout {row}", corner, low=0, high=1)
                if len(corners) != 4 or corners[0] > corners[2] or corners[1] > corners[3]:
                    raise InputError(f"a box is (class, x0, y0, x1, y1), x0 <= x1, y0 <= y1, got {corners}")
                cells = [min(int(corner * config.grid), config.grid - 1) for corner in corners]
                tokens = [1 + label, *(1 + config.num_classes + cell for cell in cells)]
                ids[row, 5 * place : 5 * place + 5] = torch.tensor(tokens)
        return ids

    def detokenize(self, ids: Tensor) -> list[list[Box]]:
        """Return the layouts of token ids; corners are centres of grid cells, at most 1 / (2 G) off."""
        config = self.config
        layouts = []
        for row in ids.view(len(ids), -1, 5).tolist():
            layouts.append(
                [
                    (label - 1, *((token - 1 - config.num_classes + 0.5) / config.grid for token in corners))
                    for label, *corners in row
                    if label > 0
                ]
            )
        return layouts

    def forward(self, batch: Mapping[str, Any], drop: Tensor | None = None) -> Condition:
        """Return the transformer's states `[B, 5 * max_objects, dim]`."""
        ids = batch["layout_ids"] if "layout_ids" in batch else self.tokenize(batch["layout"])
        ids = _drop_rows(ids.to(self.device), torch.tensor(0), drop)
        return Condition(crossattn=self.encoder(ids)[0])
