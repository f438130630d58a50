"""Time the tables of `tabletop` and their pictures against the straightforward forms.

    python benchmarks/benchmarks/tabletop_speed.py --tables 1024 --pictures 64 --size 64

A batch of tables takes turns with as many tables of their own, stepped in a loop; pictures that draw bounding boxes
only take turns with pictures that blend every shape over the whole frame. Results of both forms are compared before
they are timed. The best processor time of each, per step of a table and per picture, and the ratios are printed as
JSON; processor time does not grow while other work waits for the same cores.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from noiseworks.bench.testbeds.tabletop import TabletopBatch, render
from noiseworks.bench.testbeds.tabletop import rendering as draw
from noiseworks.bench.testbeds.tabletop import simulation as sim


def started(rows: np.ndarray) -> TabletopBatch:
    """Return tables whose tasks go round and whose seeds are their numbers."""
    env = TabletopBatch(len(rows))
    env.reset(np.arange(len(rows)), rows % 12, rows)
    return env


def whole_frame(states: np.ndarray, size: int) -> np.ndarray:
    """Return the pictures of states by blending each shape over every pixel."""
    states = states.astype(np.float32)[:, :, None, None]
    axis = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    x, y = axis[None, None, :], -axis[None, :, None]
    image = np.broadcast_to(draw.TABLE, (len(states), size, size, 3)).copy()

    def blend(cover: np.ndarray, color: np.ndarray) -> None:
        image[:] += cover[..., None] * (color - image)

    def box(cx: np.ndarray, cy: np.ndarray, half: tuple[float, float], color: np.ndarray) -> None:
        across = (0.5 + (half[0] - np.abs(x - cx)) * size / 2).clip(0, 1)
        blend(across * (0.5 + (half[1] - np.abs(y - cy)) * size / 2).clip(0, 1), color)

    def disc(
        cx: np.ndarray, cy: np.ndarray, radius: np.ndarray, color: np.ndarray, inner: np.ndarray
    ) -> None:
        distance = np.hypot(x - cx, y - cy)
        outside = (0.5 + (radius - distance) * size / 2).clip(0, 1)
        blend(np.minimum(outside, (0.5 + (distance - inner) * size / 2).clip(0, 1)), color)

    for side in range(2):
        half = (sim.PAD_HALF, sim.PAD_HALF)
        box(states[:, 13 + 2 * side], states[:, 14 + 2 * side], half, draw.PAD_COLORS[side])
    middle = np.float32(sim.HANDLE_X + sim.DRAWER_LENGTH / 2)
    box(middle, np.float32(sim.HANDLE_Y), (sim.DRAWER_LENGTH / 2 + 0.05, 0.02), draw.RAIL)
    box(states[:, 17], np.float32(sim.HANDLE_Y), tuple(draw.HANDLE_HALF), draw.HANDLE_COLOR)
    pressed = draw.BUTTON_COLOR + states[:, 20, ..., None] * (draw.PRESSED_COLOR - draw.BUTTON_COLOR)
    disc(states[:, 18], states[:, 19], sim.BUTTON_RADIUS, pressed, -1.0)
    for i in range(3):
        disc(states[:, 7 + 2 * i], states[:, 8 + 2 * i], sim.DISC_RADIUS, draw.DISC_COLORS[i], -1.0)
    closed = states[:, 2] > 0
    radius = np.where(closed, draw.CLOSED_RADIUS, draw.OPEN_RADIUS)
    hole = np.where(closed, -1.0, draw.OPEN_RADIUS - draw.OPEN_WIDTH)
    disc(states[:, 0], states[:, 1], radius, draw.GRIPPER_COLOR, hole)
    return np.rint(image).astype(np.uint8)


def best_times(forms: dict[str, Callable[[], None]], turns: int) -> dict[str, float]:
    """Return the shortest processor seconds of each form; the forms take turns."""
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(turns):
        for name, form in forms.items():
            begin = time.process_time()
            form()
            best[name] = min(best[name], time.process_time() - begin)
    return best


def time_steps(tables: int, steps: int, turns: int) -> dict[str, float]:
    """Return microseconds per step of a table, of a batch and of tables of their own."""
    rows = np.arange(tables)
    together, alone = started(rows), [started(rows[i : i + 1]) for i in rows]
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, tables, 3))

    def batch() -> None:
        for action in actions:
            together.step(action)

    def loop() -> None:
        for action in actions:
            for i, env in enumerate(alone):
                env.step(action[i : i + 1])

    batch()
    loop()
    if together.state().tobytes() != np.concatenate([env.state() for env in alone]).tobytes():
        raise SystemExit("the batch and the single tables differ")
    best = best_times({"batch": batch, "loop": loop}, turns)
    return {name: 1e6 * seconds / steps / tables for name, seconds in best.items()}


def time_pictures(pictures: int, size: int, turns: int) -> dict[str, float]:
    """Return milliseconds per picture, of bounding boxes and of whole frames."""
    states = started(np.arange(pictures)).state()
    apart = np.abs(render(states, size).astype(int) - whole_frame(states, size))
    if apart.max() > 1:
        raise SystemExit(f"the two forms differ by {apart.max()} of 255")
    forms = {"boxes": lambda: render(states, size), "frames": lambda: whole_frame(states, size)}
    return {name: 1e3 * seconds / pictures for name, seconds in best_times(forms, turns).items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"tables": 1024, "steps": 20, "pictures": 64, "size": 64, "turns": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    steps = time_steps(chosen.tables, chosen.steps, chosen.turns)
    one = time_steps(1, 20 * chosen.steps, chosen.turns)
    pictures = time_pictures(chosen.pictures, chosen.size, chosen.turns)
    record = {
        "us_per_step": steps["batch"],
        "ratio_to_single_tables": steps["loop"] / steps["batch"],
        "us_per_step_of_one_table": one["batch"],
        "ms_per_picture": pictures["boxes"],
        "ratio_to_whole_frames": pictures["frames"] / pictures["boxes"],
    }
    print(json.dumps({**vars(chosen), **{name: round(value, 4) for name, value in record.items()}}, indent=2))


if __name__ == "__main__":
    main()
