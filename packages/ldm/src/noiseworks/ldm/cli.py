"""The command line `noiseworks-ldm`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.ldm.commands"

app = make_app(
    "ldm",
    {
        "train-ae": Command(f"{_HOME}:train_autoencoder", "Train a first stage (KL or VQ) on images."),
        "eval-ae": Command(f"{_HOME}:evaluate_autoencoder", "Measure PSNR, SSIM, rFD and codebook use."),
        "train": Command(f"{_HOME}:train", "Train a latent diffusion model on a first stage."),
        "sample": Command(f"{_HOME}:sample_images", "Sample, enlarge or fill images with a trained model."),
        "export": Command(f"{_HOME}:export", "Write a trained model as a diffusers pipeline."),
        "import": Command(f"{_HOME}:import_ldm", "Convert an original checkpoint to diffusers classes."),
    },
)


def main() -> None:
    """Run `noiseworks-ldm`."""
    run(app)
