"""Time one autoencoder step with the adaptive-weight shortcut against the straightforward form.

    python packages/ldm/benchmarks/adaptive_weight.py --side 64 --width 32 --steps 5

Both forms run in one process, in turns; the ratio of their medians and the largest difference of the
gradients are printed as JSON. The straightforward form walks the perceptual net, the discriminator and the
last layer twice for the two norms, and everything once more for the step.
"""

import argparse
import json
import statistics
import time

import torch
from noiseworks.ldm.autoencoding import AutoencoderOptions, make_autoencoder
from noiseworks.ldm.discriminator import PatchDiscriminator
from noiseworks.ldm.losses import PerceptualAdversarialLoss, adaptive_weight, recorded_input
from noiseworks.ldm.perceptual import FeatureNet, Perceptual
from torch import Tensor, nn


def straightforward(vae: nn.Module, loss: PerceptualAdversarialLoss, images: Tensor) -> None:
    """Walk back from both losses to the last layer, then from their sum through the whole autoencoder."""
    made = vae.decode(vae.encode(images).latent_dist.mode()).sample
    nll, weight = loss.reconstruction(images, made), vae.decoder.conv_out.weight
    adversarial = -loss.disc(made).mean()
    norms = [torch.autograd.grad(part, weight, retain_graph=True)[0].norm() for part in (nll, adversarial)]
    (nll + adaptive_weight(*norms, loss.disc_weight).detach() * adversarial).backward()


def shortcut(vae: nn.Module, loss: PerceptualAdversarialLoss, images: Tensor) -> None:
    """Take the same step from the two image gradients."""
    with recorded_input(vae.decoder.conv_out) as recorded:
        made = vae.decode(vae.encode(images).latent_dist.mode()).sample
    terms = loss.generator(images, made, vae.decoder.conv_out, recorded[-1], 0)
    (made * terms.image_gradient).sum().backward()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"side": 64, "width": 32, "factor": 4, "batch": 4, "steps": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    options = AutoencoderOptions(factor=chosen.factor, width=chosen.width)
    vae = make_autoencoder(options, chosen.side).to(chosen.device)
    perceptual, disc = Perceptual("trained", FeatureNet()), PatchDiscriminator()
    loss = PerceptualAdversarialLoss("kl", perceptual, disc, disc_start=0).to(chosen.device)
    images = torch.rand(chosen.batch, 3, chosen.side, chosen.side, device=chosen.device) * 2 - 1
    seconds: dict[str, list[float]] = {"straightforward": [], "shortcut": []}
    gradients: dict[str, list[Tensor]] = {}
    for turn in range(chosen.steps + 1):
        for form in (straightforward, shortcut):
            vae.zero_grad(set_to_none=True)
            loss.zero_grad(set_to_none=True)
            start = time.perf_counter()
            form(vae, loss, images)
            if chosen.device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                seconds[form.__name__].append(time.perf_counter() - start)
            gradients[form.__name__] = [p.grad.clone() for p in vae.decoder.parameters()]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    scale = max(float(g.abs().max()) for g in gradients["straightforward"])
    pairs = zip(gradients["shortcut"], gradients["straightforward"], strict=True)
    report = {
        "seconds": medians,
        "ratio": medians["straightforward"] / medians["shortcut"],
        "largest_relative_gradient_difference": max(float((a - b).abs().max()) for a, b in pairs) / scale,
    }
    print(json.dumps(vars(chosen) | report, indent=2))


if __name__ == "__main__":
    main()
