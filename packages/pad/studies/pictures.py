"""What a convolutional network learns of the table's poses from its pictures: a mark for policies on pictures.

    python packages/pad/studies/pictures.py --tasks 6 7 --demonstrations 50 --steps 800

It regresses the poses of the next 12 steps from a picture, the pose and the text, on pictures shifted by up to two
pixels; the planner of `noiseworks.pad` follows four of them, then it is asked again. Printed are the seconds of its
training, how far its poses at the frames are off on its demonstrations and on others, and its success in new scenes of
each task.
"""

import argparse
import json
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from noiseworks.bench.testbeds.tabletop import TabletopBatch
from noiseworks.kits.training import Average, warm_decay
from noiseworks.pad import Window
from noiseworks.pad.data import table_recording
from noiseworks.pad.policy import PosePlanner
from noiseworks.pad.training import pose_scales
from noiseworks.pad.windows import Windows, shifted
from torch import Tensor, nn

SEED, HELD_OUT, NEW_SCENES, SCENES, EXECUTED, MAX_STEPS, BATCH = 20, 90, 100_000, 50, 4, 60, 64


class Regressor(nn.Module):
    """Pictures [B, 3, 32, 32], poses [B, 3] and texts [B, 32] -> motions [B, 36], scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 5, 2, 2), nn.Conv2d(32, 64, 3, 1, 1)
        self.third, self.text = nn.Conv2d(64, 64, 3, 2, 1), nn.Linear(32, 128)
        inner = (nn.Linear(64 * 64 + 3 + 32, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU())
        self.head = nn.Sequential(*inner, nn.Linear(256, 36))

    def forward(self, pictures: Tensor, poses: Tensor, texts: Tensor) -> Tensor:
        """Return scaled motions."""
        scale, shift = self.text(texts)[..., None, None].chunk(2, dim=1)
        seen = F.silu(self.second(F.silu(self.first(pictures))) * (1 + scale) + shift)
        return self.head(torch.cat((F.silu(self.third(seen)).flatten(1), poses, texts), dim=1))


def motions(batch: dict[str, Tensor]) -> Tensor:
    """Return a batch's poses relative to the present one, [B, 36]."""
    return (batch["poses"].unflatten(1, (-1, 3)) - batch["pose"][:, None]).flatten(1)


def study(tasks: list[int], demonstrations: int, steps: int) -> dict:
    """Train on demonstrations of the tasks and return the figures."""
    recording = table_recording(demonstrations, SEED, 32, tuple(tasks))
    others = table_recording(6, HELD_OUT, 32, tuple(tasks))
    rows, held_out = Windows(recording, Window(), 3), Windows(others, Window(), 3)
    poses, scale = pose_scales(recording, Window(), 3)
    torch.manual_seed(0)
    model, move, generator = Regressor(), shifted(2), torch.Generator().manual_seed(0)
    average = Average(model, warm_decay(0.995))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
    began = time.process_time()
    for step in range(steps):
        batch = move(rows.__getitems__(torch.randint(len(rows), (BATCH,)).tolist()), generator)
        optimizer.param_groups[0]["lr"] = (
            1.5e-3 * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        found = model(batch["image"], poses.normalize(batch["pose"]), batch["goal"])
        loss = (found - scale.normalize(motions(batch))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model)
    seconds, trained = time.process_time() - began, average.model.eval()

    @torch.no_grad()
    def ask(image: Tensor, pose: Tensor, goal: Tensor) -> Tensor:
        return scale.unnormalize(trained(image, poses.normalize(pose), goal)).unflatten(1, (-1, 3))

    result = {"seconds": round(seconds)}
    for name, some in (("demonstrations", rows), ("others", held_out)):
        batch = some.__getitems__(np.linspace(0, len(some) - 1, 300).round().astype(int).tolist())
        away = ask(batch["image"], batch["pose"], batch["goal"]) - motions(batch).unflatten(1, (-1, 3))
        result[name] = [round(x, 3) for x in away[:, 3::4, :2].norm(dim=-1).mean(0).tolist()]
    labels = np.repeat(tasks, SCENES)
    env, solved = TabletopBatch(len(labels), image_size=32, max_steps=MAX_STEPS), np.zeros(len(labels), bool)
    env.reset(np.arange(len(labels)), labels, np.tile(NEW_SCENES + np.arange(SCENES), len(tasks)))
    planner = PosePlanner()
    for step in range(MAX_STEPS):
        seen = {name: torch.from_numpy(value) for name, value in env.observe().items()}
        if step % EXECUTED == 0:
            plan = ask(seen["image"] / 127.5 - 1, seen["pose"], seen["goal"]) + seen["pose"][:, None]
        solved |= env.step(planner.act(seen["pose"], plan[:, step % EXECUTED]).numpy()).terminated
    return result | {"success": {task: float(solved[labels == task].mean()) for task in tasks}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=[6, 7])
    parser.add_argument("--demonstrations", type=int, default=50)
    parser.add_argument("--steps", type=int, default=800)
    print(json.dumps(study(**vars(parser.parse_args()))))
