"""Cards of the shipped models: what each is, how it was trained and how good it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from noiseworks.bench.testbeds import shipped_models

CARD_NAME = "card.json"
CARD_SEED = 700  # below 1000: cards do not use up the seeds that claims are judged on

Figure = dict[str, float]


def figure(values: np.ndarray, seed: int = 0) -> Figure:
    """Return the mean of values [n] with its 95 % bootstrap interval and n."""
    values = np.asarray(values, np.float64)
    rows = np.random.default_rng(seed).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(values[rows].mean(1), (0.025, 0.975))
    rounded = {"value": values.mean(), "low": low, "high": high}
    return {name: round(float(number), 4) for name, number in rounded.items()} | {"n": len(values)}


def list_cards() -> list[dict[str, Any]]:
    """Return the cards of every shipped model, by name.

    Returns:
        One mapping a model: `name`, `class`, `folder`, what it was trained on and how (`data`, `training`),
        how large it is (`size`) and what was measured (`quality`: figure -> value, 95 % interval and sample
        size).
    """
    cards = []
    for name, folder in sorted(shipped_models().items()):
        path = folder / CARD_NAME
        facts = json.loads(path.read_text()) if path.is_file() else {"name": name}
        cards.append({**facts, "folder": str(folder)})
    return cards


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """Write a model's card atomically."""
    from noiseworks.core.artifacts import atomic_write

    atomic_write(folder / CARD_NAME, json.dumps(facts, indent=2) + "\n")


def model_size(folder: Path) -> dict[str, float]:
    """Return a model's number of parameters (all its networks) and its megabytes on disk."""
    from safetensors import safe_open

    parameters = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "np") as file:
            for key in file.keys():  # noqa: SIM118
                count = 1
                for side in file.get_slice(key).get_shape():
                    count *= side
                parameters += count
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != CARD_NAME)
    return {"parameters": parameters, "megabytes": round(size / 1e6, 2)}
