"""What linear-ag promises beside its equations."""

from functools import partial
from pathlib import Path

from noiseworks.kits.contracts import Artifact, Contract

FAMILIES = ("sd", "sd-inpaint", "instruct-pix2pix", "sdxl", "sd3", "flux", "pixart", "dit")
DRAW = "--model {model} --prompts {prompts.txt} --num-inference-steps 4 --guidance-scale 4 --device cpu"


def files(folder: Path) -> dict[str, Path]:
    """Make a tiny pipeline, one of another family, prompts, and files that a user could name by mistake."""
    import torch
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.linear_ag.artifacts import save_policy
    from noiseworks.linear_ag.linear import fit_from_gram, gram_matrix
    from noiseworks.linear_ag.policies import FixedPolicy

    tiny_pipeline("sd").save_pretrained(folder / "model")
    tiny_pipeline("instruct-pix2pix").save_pretrained(folder / "editor")
    (folder / "prompts.txt").write_text("a red circle\na blue square\n\n")
    (folder / "blank.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    (folder / "table.csv").write_text("a red circle\n")
    save_policy(folder / "policy", FixedPolicy("2211"))
    broken = fit_from_gram(gram_matrix(*torch.randn(2, 4, 2, 9)), 4)
    broken.beta_cond.fill_(float("nan"))
    broken.save_pretrained(folder / "nan")
    names = (
        "model",
        "editor",
        "prompts.txt",
        "blank.txt",
        "latin.txt",
        "table.csv",
        "policy",
        "coefs",
        "nan",
    )
    return {name: folder / name for name in names}


def check(family: str) -> None:
    """Attach a threshold that nothing reaches to a tiny pipeline."""
    from noiseworks.kits.testing import check_attach, diffusion_host
    from noiseworks.linear_ag import AdaptiveGuidance, attach

    host = diffusion_host(family, steps=2)
    check_attach(lambda pipe: attach(pipe, AdaptiveGuidance(threshold=1.5)), host)


def save_linear(path: Path) -> None:
    """Fit coefficients on numbers and save them."""
    import torch
    from noiseworks.linear_ag.linear import fit_from_gram, gram_matrix

    cond, uncond = torch.randn(2, 4, 2, 9, generator=torch.Generator().manual_seed(0))
    fit_from_gram(gram_matrix(cond, uncond), 4).save_pretrained(path)


def load_linear(path: Path) -> dict:
    """Read them back."""
    from noiseworks.linear_ag import LinearCoefficients

    return vars(LinearCoefficients.from_pretrained(path))


def save_adaptive(path: Path) -> None:
    """Save a policy."""
    from noiseworks.linear_ag import AdaptiveGuidance
    from noiseworks.linear_ag.artifacts import save_policy

    save_policy(path, AdaptiveGuidance(0.97, min_step=2, space="x0"))


def load_adaptive(path: Path) -> dict:
    """Read it back."""
    from noiseworks.linear_ag.artifacts import load_policy

    return vars(load_policy(path))


GENERATED = ("out/0001.png", "out/metrics.csv", "out/report.json", "out/trace.png", "out/config.yaml")
CONTRACT = Contract(
    files=files,
    good={
        f"generate {DRAW} --policy {{policy}} --out out": GENERATED,
        f"profile {DRAW} --out out": ("out/gamma.csv", "out/config.yaml"),
        f"calibrate {DRAW} --target-nfe 6 --out out": ("out/config.json",),
        f"fit {DRAW} --out out": ("out/model.safetensors",),
        f"search {DRAW} --method truncation --budget 6 --out out": ("out/config.json",),
        f"compare {DRAW} --policies ag,cfg:3,linear --target-nfe 6 --out out": (
            "out/comparison.csv",
            "out/images.png",
        ),
    },
    bad=[
        ("generate --model {model} --prompts disc --out out --guidance-scale 1", "guidance_scale"),
        (f"generate {DRAW} --out out --threshold nan", "threshold"),
        (f"generate {DRAW} --out out --policy 22111", "--num-inference-steps 4"),
        (f"generate {DRAW} --out out --policy nothing", "policy"),
        (f"generate {DRAW} --out out --policy interval:0.5", "policy"),
        (f"generate {DRAW} --out out --policy first:2", "policy first"),
        (f"generate {DRAW} --out out --policy linear", "--coefs"),
        (f"generate {DRAW} --out out --policy linear --coefs {{policy}}", "coefficients"),
        (f"generate {DRAW} --out out --policy linear --coefs {{nan}}", "holds NaN"),
        ("generate --model {editor} --prompts disc --out out", "instruct-pix2pix"),
        ("generate --model missing --prompts disc --out out", "missing"),
        ("generate --model {model} --prompts gone.txt --out out", "gone.txt"),
        ("generate --model {model} --prompts {blank.txt} --out out", "prompt"),
        ("generate --model {model} --prompts {latin.txt} --out out", "UTF-8"),
        ("generate --model {model} --prompts {table.csv} --out out", "no text file"),
        (f"generate {DRAW} --out {{model}}", "source"),
        (f"calibrate {DRAW} --target-nfe 9 --out out", "target_nfe"),
        (f"calibrate {DRAW} --out out", "either"),
        (f"search {DRAW} --method local --budget 9 --out out", "budget"),
        (f"search {DRAW} --scales 0.5 --out out", "scales"),
        (f"compare {DRAW} --policies ag,cfg:0 --out out", "policy"),
    ],
    attach={family: partial(check, family) for family in FAMILIES},
    artifacts={
        "coefficients": Artifact(save_linear, load_linear),
        "policy": Artifact(save_adaptive, load_adaptive),
    },
)
