"""What captions state, as numbers, and a first training of text encoders to state it.

Text-to-image models start from text encoders that were trained on text or on captions before. Here an encoder
first learns to say what a caption states; the joint training with the denoiser then starts from there.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from noiseworks.bench.testbeds.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    COUNTS,
    POSITIONS,
    RADII,
    RELATIONS,
    SHAPES,
    Scene,
)
from torch import Tensor, nn

ABSENT = -100  # the target that `cross_entropy` ignores
VALUES: tuple[tuple[str, ...], ...] = (
    SHAPES,
    tuple(COLORS),
    SHAPES,
    tuple(COLORS),
    tuple(RADII),
    tuple(POSITIONS),
    tuple(RELATIONS),
    tuple(BACKGROUNDS),
    ("one", *COUNTS.values()),
)


def statements(scenes: Sequence[Scene]) -> Tensor:
    """Return what the complete captions of scenes state, int64 [n, 9], `ABSENT` for what they do not.

    The columns are shape and colour of the first and of the second object, size, position, relation,
    background and count, as indices into `VALUES`.
    """
    rows = []
    for scene in scenes:
        first, second = scene.objects[0], scene.objects[1] if scene.kind == "relation" else None
        count = None if second else ("one", *COUNTS.values())[len(scene.objects) - 1]
        pair = (second.shape, second.color) if second else (None, None)
        words = (first.shape, first.color, *pair, scene.size, scene.position, scene.relation)
        stated = zip(VALUES, (*words, scene.background, count), strict=True)
        rows.append([ABSENT if word is None else values.index(word) for values, word in stated])
    return torch.tensor(rows)


def teach(
    encoders: nn.Module,
    encode: Callable[[Tensor], Tensor],
    stated: Tensor,
    *,
    steps: int = 400,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> float:
    """Train text encoders until linear maps of their mean token read what captions state.

    Args:
        encoders: What is trained, in place.
        encode: Row indices [B] of the training set -> tokens [B, L, D] of their captions.
        stated: `statements` of the rows' scenes, int64 [n, 9].
        steps: Optimiser steps.
        batch_size: Rows a step.
        learning_rate: Peak of the one-cycle schedule.
        seed: Of the order of rows and of the linear maps.

    Returns:
        The cross-entropy in nats, summed over what is stated, of the last batch.
    """
    sizes = [len(values) for values in VALUES]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        width = encode(torch.zeros(1, dtype=torch.long)).shape[-1]
    readout = torch.zeros(sum(sizes), width).normal_(0, width**-0.5, generator=generator).requires_grad_()
    optimizer = torch.optim.AdamW([*encoders.parameters(), readout], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(stated), (batch_size,), generator=generator)
        logits = (encode(rows).mean(1) @ readout.T).split(sizes, dim=1)
        columns = stated[rows].unbind(dim=1)
        losses = [
            F.cross_entropy(one, column, ignore_index=ABSENT, reduction="sum") / batch_size
            for one, column in zip(logits, columns, strict=True)
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return float(loss.detach())
