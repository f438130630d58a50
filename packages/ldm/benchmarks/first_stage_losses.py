"""Train first stages that differ in the parts of their loss, and measure what each part buys.

    python packages/ldm/benchmarks/first_stage_losses.py --out runs/losses --kind kl --factor 4 --batches 4000

Arms: pixel distance alone; with the perceptual distance; with the patch discriminator too. All see the same scenes of
the testbed, batch by batch, from the same initial weights. Other scenes are reconstructed: PSNR, SSIM, the Fréchet
distance in the features of one net that all arms share, and the share of attributes that the testbed's oracle still
reads from the reconstructions. A run that was stopped goes on. The rows are printed as JSON and written to
`OUT/scores.json`.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from noiseworks.bench.testbeds import shapes
from noiseworks.core.artifacts import atomic_write
from noiseworks.kits.training import TensorTable
from noiseworks.ldm.data import to_tensor
from noiseworks.ldm.diffusion.model import load_first_stage
from noiseworks.ldm.first_stage.autoencoding import train_autoencoder
from noiseworks.ldm.first_stage.evaluation import reconstruct, score_autoencoder
from noiseworks.ldm.first_stage.perceptual import train_features
from noiseworks.ldm.options import AutoencoderOptions, LossOptions, RunOptions

ARMS = {
    "pixels": {"perceptual": "none", "adversarial": False},
    "pixels, perceptual": {"perceptual": "trained", "adversarial": False},
    "pixels, perceptual, adversarial": {"perceptual": "trained", "adversarial": True},
}
JUDGING_SEED = 1000


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", choices=("kl", "vq"), default="kl")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of both optimisers")
    numbers = {"factor": 4, "width": 32, "batches": 4000, "batch-size": 32, "disc-start": 1000}
    numbers |= {"scenes": 4096, "images": 512, "feature-steps": 300, "seed": 0}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    data = chosen.out / "scenes.npz"
    drawn = shapes.render(shapes.sample_scenes(chosen.scenes, seed=chosen.seed))
    np.savez(data, images=(255 * drawn).round().astype(np.uint8))
    model = AutoencoderOptions(chosen.kind, chosen.factor, width=chosen.width, codes=512)
    scenes = shapes.sample_scenes(chosen.images, JUDGING_SEED, "test")
    truth = to_tensor(shapes.render(scenes))
    features, accuracy = train_features(truth, steps=chosen.feature_steps, seed=JUDGING_SEED)
    rows = []
    for arm, parts in ARMS.items():
        folder = chosen.out / arm.replace(", ", "-")
        loss = LossOptions(
            learning_rate=chosen.rate,
            scale_lr=False,
            feature_steps=chosen.feature_steps,
            disc_start=chosen.disc_start,
            **parts,
        )
        run = RunOptions(
            max_steps=chosen.batches,
            batch_size=chosen.batch_size,
            device="cpu",
            seed=chosen.seed,
        )
        trained = train_autoencoder(str(data), folder, model=model, loss=loss, run=run)
        vae = load_first_stage(trained.vae)
        scores = score_autoencoder(vae, TensorTable({"image": truth}), features, accuracy)
        with torch.inference_mode():
            made = torch.cat([reconstruct(vae, part)[0] for part in truth.split(32)])
        read = shapes.score((made.clamp(-1, 1).permute(0, 2, 3, 1).numpy() + 1) / 2, scenes)
        rows.append({"loss": arm, "oracle": float(read.mean())} | asdict(scores))
        atomic_write(chosen.out / "scores.json", json.dumps(rows, indent=2) + "\n")
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
