"""Time a first-stage training step with the adaptive-weight shortcut against the straightforward form.

    python packages/ldm/studies/adaptive_weight.py --side 64 --width 32 --steps 5

Both forms run in one process, in turns; the ratios of their medians and the largest difference of the gradients
are printed as JSON. The straightforward form walks the perceptual net, the discriminator and the last layer twice
for the two norms, and everything once more for the step; and, as the authors' code does, it runs the autoencoder
and the discriminator on its output again for the discriminator's part.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence

import torch
from noiseworks.ldm.first_stage.autoencoding import make_autoencoder
from noiseworks.ldm.first_stage.discriminator import PatchDiscriminator
from noiseworks.ldm.first_stage.losses import (
    PerceptualAdversarialLoss,
    adaptive_weight,
    hinge_discriminator_loss,
    recorded_input,
)
from noiseworks.ldm.first_stage.perceptual import FeatureNet, Perceptual
from noiseworks.ldm.options import AutoencoderOptions
from torch import Tensor, nn


def straightforward(vae: nn.Module, loss: PerceptualAdversarialLoss, images: Tensor) -> Iterator[None]:
    """Walk back from both losses to the last layer, then from their sum through the whole autoencoder; then train D."""
    made = vae.decode(vae.encode(images).latent_dist.mode()).sample
    nll, weight = loss.reconstruction(images, made), vae.decoder.conv_out.weight
    adversarial = -loss.disc(made).mean()
    norms = [torch.autograd.grad(part, weight, retain_graph=True)[0].norm() for part in (nll, adversarial)]
    (nll + adaptive_weight(*norms, loss.disc_weight).detach() * adversarial).backward()
    yield
    with torch.no_grad():
        made = vae.decode(vae.encode(images).latent_dist.mode()).sample
    loss.disc.zero_grad(set_to_none=True)  # the walk above has reached it
    hinge_discriminator_loss(loss.disc(images), loss.disc(made)).backward()


def shortcut(vae: nn.Module, loss: PerceptualAdversarialLoss, images: Tensor) -> Iterator[None]:
    """Take the same steps from the two image gradients and the logits at hand."""
    with recorded_input(vae.decoder.conv_out) as recorded:
        made = vae.decode(vae.encode(images).latent_dist.mode()).sample
    terms = loss.generator(images, made, vae.decoder.conv_out, recorded[-1], 0)
    (made * terms.image_gradient).sum().backward()
    yield
    loss.discriminator(images, terms.fake_logits)[0].backward()


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {
        "side": 64,
        "width": 32,
        "factor": 4,
        "batch": 4,
        "steps": 5,
        "disc-width": 64,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args(words)
    options = AutoencoderOptions(factor=chosen.factor, width=chosen.width)
    vae = make_autoencoder(options, chosen.side).to(chosen.device)
    perceptual, disc = Perceptual("trained", FeatureNet()), PatchDiscriminator(width=chosen.disc_width)
    loss = PerceptualAdversarialLoss("kl", perceptual, disc, disc_start=0).to(chosen.device)
    images = torch.rand(chosen.batch, 3, chosen.side, chosen.side, device=chosen.device) * 2 - 1
    # On a CPU the process's own time, which other work on the machine does not count in.
    clock = time.process_time if chosen.device == "cpu" else time.perf_counter
    seconds: dict[str, dict[str, list[float]]] = {"autoencoder": {}, "with discriminator": {}}
    gradients: dict[str, list[Tensor]] = {}
    for turn in range(chosen.steps + 1):
        for form in (straightforward, shortcut):
            vae.zero_grad(set_to_none=True)
            loss.zero_grad(set_to_none=True)
            start, parts = clock(), form(vae, loss, images)
            for times in seconds.values():
                next(parts, None)
                if chosen.device.startswith("cuda"):
                    torch.cuda.synchronize()
                if turn:  # the first turn warms up
                    times.setdefault(form.__name__, []).append(clock() - start)
            trained = [*vae.decoder.parameters(), *loss.disc.parameters()]
            gradients[form.__name__] = [p.grad.clone() for p in trained]
    medians = {
        part: {name: statistics.median(values) for name, values in times.items()}
        for part, times in seconds.items()
    }
    scale = max(float(g.abs().max()) for g in gradients["straightforward"])
    pairs = zip(gradients["shortcut"], gradients["straightforward"], strict=True)
    report = {
        "seconds": medians,
        "ratio": {part: found["straightforward"] / found["shortcut"] for part, found in medians.items()},
        "largest_relative_gradient_difference": max(float((a - b).abs().max()) for a, b in pairs) / scale,
    }
    print(json.dumps(vars(chosen) | report, indent=2))


if __name__ == "__main__":
    main()
