"""Training of `shapes-clip`, an image-text model: how well an image shows a concept such as `a red circle`.

It sees scenes of two objects; every caption names one of them.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L  # noqa: TID253
import numpy as np
import torch
import torch.nn.functional as F
from noiseworks.bench.testbeds.cards import CARD_SEED, Figure, figure
from noiseworks.bench.testbeds.shapes import architectures as nets
from noiseworks.bench.testbeds.shapes.concepts import CONCEPTS
from noiseworks.bench.testbeds.shapes.scenes import Scene, render, sample_scenes
from noiseworks.kits.training import Average, warm_decay
from torch import Tensor

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.training import Captions
    from transformers import CLIPModel

TRAIN_SEED = 0
ROWS = 12_000
CLIP_RATE = 2e-3
SCALE = 20.0  # of cosines in the contrastive loss; CLIP learns 100 from far larger batches


def pair_scenes(n: int, seed: int, split: str = "train") -> list[Scene]:
    """Return scenes of two objects of different shape and colour; arguments as in `sample_scenes`."""
    scenes: list[Scene] = []
    count = 8 * n + 64
    while len(scenes) < n:
        drawn = sample_scenes(count, seed, split)
        scenes = [scene for scene in drawn if scene.kind == "relation" and _differ(scene)]
        count *= 2
    return scenes[:n]


def _differ(scene: Scene) -> bool:
    first, second = scene.objects
    return first.shape != second.shape and first.color != second.color


def concepts_of(scene: Scene) -> list[str]:
    """Return what can be said of a scene: a concept an object."""
    return [f"a {item.color} {item.shape}" for item in scene.objects]


def make_clip() -> "CLIPModel":
    """Return the untrained `shapes-clip`: a vision transformer on 8x8 patches and a text encoder of two layers."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    width = nets.TEXT_WIDTH
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    text = nets.make_text_encoder(nets.make_tokenizer()).config
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=width)
    )


class ContrastiveTrainer(L.LightningModule):
    """Trains an image-text model on images and all concepts, of which each image shows two.

    The contrastive loss of CLIP in both directions, with as many right answers as there are. Images are blurred and
    noised at random, because a forecast in the middle of a run is blurred.

    Args:
        model: The model.
        ids: Token ids of all concepts [24, L].
    """

    def __init__(self, model: "CLIPModel", ids: Tensor) -> None:
        super().__init__()
        self.model, self.average = model, Average(model, warm_decay(0.998))
        self.register_buffer("ids", ids)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of bytes `image` [B, 3, 32, 32] and `shown` [B, 24]."""
        images = _blurred(batch["image"].float().div(127.5).sub(1))
        vision = self.model.visual_projection(self.model.vision_model(images).pooler_output)
        text = self.model.text_projection(self.model.text_model(self.ids).pooler_output)
        logits = SCALE * F.normalize(vision, dim=-1) @ F.normalize(text, dim=-1).T
        shown = batch["shown"].float()
        by_image = F.cross_entropy(logits, shown / shown.sum(1, keepdim=True))
        there = shown.sum(0) > 0
        by_text = F.cross_entropy(logits.T[there], (shown / shown.sum(0).clamp(min=1)).T[there])
        return (by_image + by_text) / 2

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and move the average."""
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, whose rate the budget sets."""
        return torch.optim.AdamW(self.model.parameters(), CLIP_RATE, weight_decay=0.01)


def _blurred(images: Tensor) -> Tensor:
    factor = (1, 1, 2, 4)[int(torch.randint(4, ()))]
    if factor > 1:
        images = F.interpolate(F.avg_pool2d(images, factor), scale_factor=factor, mode="bilinear")
    strength = 0.3 * torch.rand(len(images), 1, 1, 1, device=images.device)
    return images + strength * torch.randn_like(images)


def prepare_clip(captions: "Captions", rows: int | None) -> dict[str, Tensor]:
    """Return images as bytes [n, 3, 32, 32] and which concepts each shows, bool [n, 24]."""
    scenes = pair_scenes(rows or ROWS, TRAIN_SEED)
    images = torch.from_numpy(render(scenes)).permute(0, 3, 1, 2).mul(255).round().byte()
    return {"image": images.contiguous(), "shown": shown_concepts(scenes)}


def shown_concepts(scenes: list[Scene]) -> Tensor:
    """Return which of `CONCEPTS` each scene shows, bool [n, 24]."""
    return torch.tensor([[text in concepts_of(scene) for text in CONCEPTS] for scene in scenes])


def build_clip(data: dict[str, Tensor]) -> L.LightningModule:
    """Return the trainer."""
    ids = nets.make_tokenizer()(list(CONCEPTS), padding="max_length", return_tensors="pt")["input_ids"]
    return ContrastiveTrainer(make_clip(), ids)


def publish_clip(module: ContrastiveTrainer, folder: Path) -> None:
    """Write the averaged model and its processor in transformers' format, in half precision."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    model = copy.deepcopy(module.average.model).half()
    model.config.dtype = "float32"
    model.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    images = CLIPImageProcessor(
        do_resize=True,
        size=side,
        do_center_crop=False,
        crop_size=side,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    CLIPProcessor(images, nets.make_tokenizer()).save_pretrained(folder)


@torch.no_grad()
def _cosines(folder: Path, images: Tensor) -> Tensor:
    """Return cosines of images [n, 3, 32, 32] in [-1, 1] with all concepts, [n, 24]."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = nets.make_tokenizer()(list(CONCEPTS), padding="max_length", return_tensors="pt")["input_ids"]
    text = model.text_projection(model.text_model(ids).pooler_output)
    vision = torch.cat(
        [model.visual_projection(model.vision_model(x).pooler_output) for x in images.split(256)]
    )
    return F.normalize(vision, dim=-1) @ F.normalize(text, dim=-1).T


def tune_clip(folder: Path, n: int, seed: int = 0) -> dict[str, float]:
    """Return the share of `test` scenes whose two concepts have the two highest cosines."""
    scenes = pair_scenes(n, seed, "test")
    return {"share_right": float(np.mean(_both_first(folder, scenes, 1)))}


def measure_clip(folder: Path, n: int, seed: int = CARD_SEED) -> dict[str, Figure]:
    """Return the card's figures: both concepts ranked first on sharp and on blurred scenes, and cosines.

    Args:
        folder: The model's folder.
        n: Scenes.
        seed: Of the scenes.
    """
    scenes = pair_scenes(n, seed, "test")
    shown = shown_concepts(scenes)
    images = torch.from_numpy(render(scenes)).permute(0, 3, 1, 2).mul(2).sub(1)
    cosines = _cosines(folder, images)
    return {
        "both concepts ranked first": figure(_both_first(folder, scenes, 1)),
        "both concepts ranked first, 4x4 blur": figure(_both_first(folder, scenes, 4)),
        "cosine with a concept that is there": figure(cosines[shown].numpy()),
        "cosine with a concept that is not": figure(cosines[~shown].numpy()),
    }


def _both_first(folder: Path, scenes: list[Scene], blur: int) -> np.ndarray:
    images = torch.from_numpy(render(scenes)).permute(0, 3, 1, 2).mul(2).sub(1)
    if blur > 1:
        images = F.interpolate(F.avg_pool2d(images, blur), scale_factor=blur, mode="bilinear")
    best = _cosines(folder, images).topk(2, dim=1).indices
    return shown_concepts(scenes).gather(1, best).all(1).float().numpy()
