"""The command line `noiseworks-ldm`: every verb is a public function of the package."""

from noiseworks.core.cli import Command, make_app, run

_HERE = "noiseworks.ldm"

app = make_app(
    "ldm",
    {
        "train-ae": Command(
            f"{_HERE}.first_stage.autoencoding:train_autoencoder", "Train a first stage (KL or VQ) on images."
        ),
        "eval-ae": Command(
            f"{_HERE}.first_stage.evaluation:evaluate_autoencoder",
            "Measure PSNR, SSIM, rFD and codebook use.",
        ),
        "train": Command(
            f"{_HERE}.diffusion.training:train", "Train a latent diffusion model on a first stage."
        ),
        "sample": Command(f"{_HERE}.tasks:sample_images", "Sample images from a trained model."),
        "inpaint": Command(f"{_HERE}.tasks:inpaint", "Fill the masked part of an image."),
        "upscale": Command(f"{_HERE}.tasks:upscale", "Enlarge an image four times."),
        "layout": Command(f"{_HERE}.tasks:layout", "Sample an image from boxes with classes."),
        "semantic": Command(f"{_HERE}.tasks:semantic", "Sample an image from a map of classes."),
        "export": Command(
            f"{_HERE}.diffusion.training:export", "Write a trained model as a diffusers pipeline."
        ),
        "import": Command(
            f"{_HERE}.conversion.originals:import_ldm", "Convert an original checkpoint to diffusers classes."
        ),
    },
)


def main() -> None:
    """Run `noiseworks-ldm`."""
    run(app)
