"""What red-diff promises beside its equations."""

from pathlib import Path

from noiseworks.kits.contracts import Contract

RUN = "--model {pixels} --image {image.png} --num-steps 4 --device cpu"
LATENT = "--model {latents} --image {large.png} --num-steps 4 --device cpu"


def files(folder: Path) -> dict[str, Path]:
    """Make a tiny pixel pipeline, a latent one, images, and files that a user could name by mistake."""
    from noiseworks.kits.diffusers_hosts import tiny_pipeline, tiny_pixel_pipeline
    from PIL import Image

    tiny_pixel_pipeline().save_pretrained(folder / "pixels")
    tiny_pipeline("sd").save_pretrained(folder / "latents")
    tiny_pipeline("flux").save_pretrained(folder / "flux")
    tiny_pipeline("dit").save_pretrained(folder / "dit")
    side = {"image.png": 8, "small.png": 4, "large.png": 32, "mask.png": 8}
    for name, size in side.items():
        Image.linear_gradient("L").resize((size, size)).convert("RGB").save(folder / name)
    Image.new("L", (8, 8), 0).save(folder / "empty.png")
    (folder / "text.txt").write_text("no image\n")
    (folder / "images").mkdir()
    for i in range(2):
        Image.linear_gradient("L").rotate(90 * i).resize((8, 8)).convert("RGB").save(
            folder / "images" / f"{i}.png"
        )
    names = ("pixels", "latents", "dit", "flux", *side, "empty.png", "text.txt", "images")
    return {name: folder / name for name in names}


MADE = ("out/restored.png", "out/images.png", "out/config.json")
CONTRACT = Contract(
    files=files,
    good={
        f"restore {RUN} --mask {{mask.png}} --out out": MADE,
        f"restore {RUN} --task phase --simulate --restarts 2 --out out": MADE,
        "restore --model {pixels} --image {small.png} --task average --num-steps 4 --method ddrm --out out": MADE,
        f"restore {LATENT} --task hdr --simulate --out out": MADE,
        "compare --model {pixels} --image {images} --num-steps 4 --sigma-y 0.05 --out out": (
            "out/comparison.csv",
            "out/images.png",
            "out/config.json",
        ),
    },
    bad=[
        (f"restore {RUN} --task phase --out out", "--simulate"),
        (f"restore {RUN} --keep 0 --out out", "keep"),
        (f"restore {RUN} --taps 4 --task deblur --out out", "taps"),
        (f"restore {RUN} --mask {{empty.png}} --out out", "no known pixel"),
        (f"restore {RUN} --mask gone.png --out out", "gone.png"),
        (f"restore {RUN} --mask {{mask.png}} --task hdr --out out", "--mask"),
        (f"restore {RUN} --task average --factor 3 --out out", "factor 3"),
        (f"restore {RUN} --task phase --simulate --method ddrm --out out", "DDRM"),
        ("restore --model {pixels} --image {small.png} --num-steps 4 --out out", "8x8"),
        ("restore --model {pixels} --image {text.txt} --num-steps 4 --out out", "text.txt"),
        ("restore --model {pixels} --image gone.png --out out", "gone.png"),
        ("restore --model {flux} --image {large.png} --out out", "flux"),
        (
            "restore --model {dit} --image {large.png} --prompt dog --device cpu --out out",
            "number of a class",
        ),
        ("restore --model {pixels} --image {image.png} --num-steps 300 --out out", "334"),
        ("compare --model missing --image {images} --out out", "missing"),
        (f"compare {RUN} --learning-rate 0 --out out", "learning_rate"),
    ],
)
