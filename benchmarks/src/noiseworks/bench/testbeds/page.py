"""The documentation page of the testbeds, written from the cards of the shipped models."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noiseworks.bench.testbeds.cards import list_cards
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.checks import check_number

IMAGE_NAME = "images/testbed-shapes.webp"
GRID_GUIDANCE = (1.0, 2.0, 4.0, 7.5)
GRID_SEED = 900


def write_page(docs: Path, prompts: int = 8) -> Path:
    """Write `testbeds.md` and its picture from the shipped models.

    Args:
        docs: The documentation folder.
        prompts: Rows of the picture.

    Returns:
        The page.

    Raises:
        InputError: When `prompts` is not a whole number of at least 1.
    """
    check_number("prompts", prompts, low=1, integer=True)
    cards = list_cards()
    commands = "\n".join(command for card in cards for command in card["training"]["commands"])
    text = Path(__file__).with_name("page.md").read_text().replace("{commands}", commands)
    text = re.sub(r"\{cards of (\w+)\}", lambda match: _sections(cards, match[1]), text)
    _draw_grid(docs / IMAGE_NAME, prompts)
    atomic_write(docs / "testbeds.md", text)
    return docs / "testbeds.md"


def _sections(cards: Sequence[dict[str, Any]], testbed: str) -> str:
    """Return what the cards of one testbed's models say, as Markdown."""
    # A model lies in <testbed>/weights/<name>.
    return "\n".join(_section(card) for card in cards if Path(card["folder"]).parts[-3] == testbed)


def _section(card: dict[str, Any]) -> str:
    """Return a model's facts and figures as Markdown."""
    training, size = card["training"], card["size"]
    notes = [training["note"], ""] if "note" in training else []
    lines = [
        f"### `testbed:{card['name']}`",
        "",
        f"{card['about']} `{card['class']}`, {size['parameters'] / 1e6:.2f} M parameters, "
        f"{size['megabytes']:.1f} MB on disk. Trained {training['minutes']:g} minutes on "
        f"{training['hardware']}: {training['steps']} steps of {training['batch_size']} rows.",
        "",
        *notes,
        "| figure | value | 95 % interval | n |",
        "|---|---|---|---|",
    ]
    for name, row in card["quality"].items():
        lines.append(f"| {name} | {row['value']:.3f} | {row['low']:.3f} to {row['high']:.3f} | {row['n']} |")
    return "\n".join([*lines, ""])


def _draw_grid(path: Path, rows: int) -> None:
    """Draw prompts against samples of `testbed:shapes` at several guidance scales."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from noiseworks.bench.testbeds.shapes import caption, render, sample_scenes, score
    from noiseworks.bench.testbeds.shapes.evaluation import load, sample
    from noiseworks.core.models import resolve_model

    pipeline = load(Path(resolve_model("testbed:shapes")))
    scenes = sample_scenes(rows, GRID_SEED, "test")
    texts = [caption(scene) for scene in scenes]
    columns = [("requested", render(scenes))]
    columns += [(f"guidance {g:g}", sample(pipeline, texts, g, seed=GRID_SEED)) for g in GRID_GUIDANCE]
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(1.3 * len(columns) + 2.2, 1.3 * rows), squeeze=False
    )
    for j, (title, images) in enumerate(columns):
        shares = score(images, scenes)
        axes[0, j].set_title(title, fontsize=8)
        for i in range(rows):
            axes[i, j].imshow(images[i].clip(0, 1), interpolation="nearest")
            axes[i, j].set(xticks=[], yticks=[], xlabel=f"{shares[i]:.0%}" if j else "")
            axes[i, j].xaxis.label.set_size(7)
    _label_rows(axes, texts)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, pil_kwargs={"quality": 85})
    plt.close(figure)


def _label_rows(axes: Any, texts: Sequence[str]) -> None:
    for i, text in enumerate(texts):
        axes[i, 0].set_ylabel(
            textwrap.fill(text, 24), rotation=0, ha="right", va="center", fontsize=7, labelpad=8
        )
