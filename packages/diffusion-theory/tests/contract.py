"""What diffusion-theory promises beside its equations."""

from pathlib import Path

from noiseworks.kits.contracts import Contract


def files(folder: Path) -> dict[str, Path]:
    """Make data of a plane in five dimensions, labelled points, and files that a user could name by mistake."""
    import numpy as np

    rng = np.random.default_rng(0)
    plane = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 5))
    np.save(folder / "plane.npy", plane)
    np.save(folder / "few.npy", plane[:20])
    np.save(folder / "equal.npy", np.ones((80, 3)))
    np.save(folder / "nan.npy", np.where(plane > 2, np.nan, plane))
    np.savez(folder / "labelled.npz", x=plane[:60], y=plane[:60, 0], unlabelled=plane)
    np.savez(folder / "odd.npz", x=plane[:60], y=plane[:50, 0])
    np.savez(folder / "unlabelled.npz", x=plane)
    names = ("plane.npy", "few.npy", "equal.npy", "nan.npy", "labelled.npz", "odd.npz", "unlabelled.npz")
    return {name: folder / name for name in names}


CONTRACT = Contract(
    files=files,
    good={
        "eval --experiment E5 --size smoke --out found": ("found/E5.json", "found/E5.svg"),
        "diagnose --data {plane.npy}": (),
        "diagnose --data {plane.npy} --largest 100 --out found": (
            "found/findings.json",
            "found/variance.svg",
            "found/steps.svg",
            "found/memorisation.svg",
            "found/learning.svg",
            "found/best-loss-by-time.svg",
        ),
        "propose --data {labelled.npz} --target 2 --n 4 --out points.npy": ("points.npy",),
    },
    bad=[
        ("eval --experiment E9", "E9"),
        ("eval --size huge", "huge"),
        ("eval --experiment E5 --size smoke --out {plane.npy}", "plane.npy"),
        ("diagnose --data missing.npy", "missing.npy"),
        ("diagnose --data {few.npy}", "at least 64"),
        ("diagnose --data {equal.npy}", "equal"),
        ("diagnose --data {nan.npy}", "NaN"),
        ("diagnose --data {labelled.npz}", "npy"),
        ("diagnose --data {plane.npy} --t0 0", "t0"),
        ("diagnose --data {plane.npy} --t0 0.5 --horizon 0.2", "horizon"),
        ("propose --data {unlabelled.npz} --target 1 --out p.npy", "rewards y"),
        ("propose --data {odd.npz} --target 1 --out p.npy", "must fit"),
        ("propose --data {labelled.npz} --target 1 --dimension 9 --out p.npy", "d must be"),
        ("propose --data {labelled.npz} --target 1 --out p.txt", ".npy"),
    ],
)
