"""Testbed `shapes`: captioned 32x32 scenes, an oracle that reads them, and small models trained on them."""

from noiseworks.bench.testbeds.shapes.oracle import Found, Reading, attributes, caption_score, read, score
from noiseworks.bench.testbeds.shapes.scenes import (
    Object,
    Scene,
    caption,
    read_caption,
    render,
    sample_scenes,
    training_caption,
    vocabulary,
)

__all__ = [
    "Found",
    "Object",
    "Reading",
    "Scene",
    "attributes",
    "caption",
    "caption_score",
    "read",
    "read_caption",
    "render",
    "sample_scenes",
    "score",
    "training_caption",
    "vocabulary",
]
