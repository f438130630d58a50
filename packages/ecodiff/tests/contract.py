"""What ecodiff promises beside its equations."""

from functools import partial
from pathlib import Path

from noiseworks.kits.contracts import Artifact, Contract, Resume

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart", "dit")
WHOLE = ("sd", "sd3")  # a U-Net and a transformer that are held to all of `check_attach`
STEPS = "--num-inference-steps 2 --guidance-scale 4 --device cpu"
DRAW = f"--model {{model}} --prompts {{prompts.txt}} {STEPS}"


def files(folder: Path) -> dict[str, Path]:
    """Make a tiny pipeline, masks on it, a pruned one, prompts, and masks of another model."""
    from noiseworks.ecodiff import MaskSet
    from noiseworks.kits.diffusers_hosts import denoiser_of, find_units, remove_units, tiny_pipeline

    pipe = tiny_pipeline("sd")
    pipe.save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text("a red circle\na blue square\na green cross\na small red cross\n")
    (folder / "one.txt").write_text("a red circle\n")
    made(denoiser_of(pipe)).save_pretrained(folder / "masks")
    made(denoiser_of(tiny_pipeline("dit"))).save_pretrained(folder / "others")
    MaskSet.new(find_units(denoiser_of(pipe)), 3.0).save_pretrained(folder / "even")
    units = find_units(denoiser_of(pipe))
    remove_units(pipe, {path: range(group.count // 2) for path, group in units.groups.items()})
    pipe.save_pretrained(folder / "small")
    names = ("model", "prompts.txt", "one.txt", "masks", "others", "even", "small")
    return {name: folder / name for name in names}


def made(model):
    """Return masks with logits of all values."""
    import torch
    from noiseworks.ecodiff import MaskSet
    from noiseworks.kits.diffusers_hosts import find_units

    masks = MaskSet.new(find_units(model), 0.0)
    for number, values in enumerate(masks.logits.values()):
        values += torch.linspace(-1.0, 1.0, len(values)).roll(number) + 0.01 * number
    return masks


def check(family: str) -> None:
    """Attach masks that are all one to a tiny pipeline."""
    from noiseworks.ecodiff import MaskSet
    from noiseworks.kits.diffusers_hosts import denoiser_of, find_units
    from noiseworks.kits.testing import check_attach, diffusion_host

    def attach(pipe):
        units = find_units(denoiser_of(pipe), ("attn", "ffn", "norm"))
        return MaskSet.new(units, 3.0).attach(denoiser_of(pipe), units)

    check_attach(attach, diffusion_host(family, steps=2), brief=family not in WHOLE)


def save(path: Path) -> None:
    """Save masks."""
    from noiseworks.kits.diffusers_hosts import denoiser_of, tiny_pipeline

    made(denoiser_of(tiny_pipeline("sd"))).save_pretrained(path)


def load(path: Path) -> dict:
    """Read them back."""
    from noiseworks.ecodiff import MaskSet

    return vars(MaskSet.from_pretrained(path))


def calibration():
    """Return runs of a tiny pipeline, and its units."""
    from noiseworks.ecodiff import Runs, Sampling
    from noiseworks.kits.diffusers_hosts import denoiser_of, find_units, tiny_pipeline

    pipe = tiny_pipeline("sd")
    sampling = Sampling(num_inference_steps=2, guidance_scale=4.0, batch_size=2)
    prompts = ["a red circle", "a blue square", "a green cross", "a small red cross"]
    return Runs(pipe, prompts, sampling), find_units(denoiser_of(pipe), include="down")


def fitted(folder: Path, stop_after: int | None) -> dict:
    """Learn masks for four updates."""
    from noiseworks.ecodiff import Learning, learn_masks
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    learning = Learning(epochs=2, accumulate=2, eps=0.1, start=1.0, mask_sample="step", checkpoint_every=0)
    runs, units = calibration()
    with stopping(stop_after), open_run(folder, {"learning": learning}) as run:
        return {
            k: v.detach() for k, v in learn_masks(runs, units, learning, run, progress=False).logits.items()
        }
    return {}


def recovered(folder: Path, stop_after: int | None) -> dict:
    """Recover a pruned tiny pipeline for three updates."""
    from noiseworks.ecodiff import Recovery, pruned_copy, recover
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    recovery = Recovery(rank=2, steps=3, checkpoint_every=0)
    runs, units = calibration()
    small = pruned_copy(runs.pipe, {path: range(group.count // 2) for path, group in units.groups.items()})
    with stopping(stop_after), open_run(folder, {"recovery": recovery}) as run:
        return dict(recover(runs, small, recovery, run, progress=False).state_dict())
    return {}


CONTRACT = Contract(
    files=files,
    good={
        f"fit {DRAW} --epochs 1 --include down --out run": ("run/masks/model.safetensors", "run/metrics.csv"),
        "prune --model {model} --masks {masks} --target-prunable 0.7 --device cpu --out small": (
            "small/unet/pruned_denoiser.py",
            "small/model_index.json",
        ),
        f"prune --model {{model}} --method taylor --calibration {{prompts.txt}} --ratio-ffn 0.5 {STEPS} --out small": (
            "small/unet/config.json",
        ),
        f"recover {DRAW} --pruned {{small}} --steps 2 --rank 2 --out run": (
            "run/model/unet/*",
            "run/metrics.csv",
        ),
        "inspect --masks {masks}": (),
        f"eval {DRAW} --pruned {{small}}": (),
        f"compare {DRAW} --masks {{masks}} --methods magnitude --out out": (
            "out/comparison.csv",
            "out/images.png",
            "out/config.yaml",
        ),
    },
    bad=[
        (f"fit {DRAW} --families heads --out run", "families"),
        (f"fit {DRAW} --include ( --out run", "include"),
        (f"fit {DRAW} --include nowhere --out run", "nowhere"),
        (f"fit {DRAW} --eps 0 --out run", "eps"),
        (f"fit --model {{model}} --prompts {{one.txt}} {STEPS} --out run", "accumulate"),
        ("fit --model missing --prompts disc --out run", "missing"),
        ("prune --model {model} --masks {masks} --out small", "target_params"),
        ("prune --model {model} --target-params 0.9 --out small", "masks"),
        ("prune --model {model} --masks {masks} --target-params 0.1 --out small", "out of reach"),
        ("prune --model {model} --masks {others} --target-prunable 0.9 --out small", "another model"),
        ("prune --model {model} --masks {even} --target-prunable 0.9 --out small", "same score"),
        ("prune --model {model} --masks {masks} --ratio-norm 0.5 --out small", "norm"),
        ("prune --model {model} --masks {masks} --target-prunable 0.9 --out {model}", "source"),
        ("prune --model {model} --method taylor --target-prunable 0.9 --out small", "calibration"),
        ("inspect --masks {model}", "config.json"),
        (f"eval {DRAW} --pruned nowhere", "nowhere"),
        (f"compare {DRAW} --masks {{masks}} --methods best --out out", "best"),
    ],
    attach={family: partial(check, family) for family in FAMILIES},
    artifacts={"masks": Artifact(save, load)},
    resume={"fit": Resume(fitted, 3), "recover": Resume(recovered, 2)},
)
