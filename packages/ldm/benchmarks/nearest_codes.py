"""Time the nearest-code search of VQ against the straightforward forms.

    python packages/ldm/benchmarks/nearest_codes.py --rows 16384 --codes 8192 --dim 3

The package's search (one matrix product a chunk) takes turns with `torch.cdist` and, where it is asked for, with
its own compiled form, in one process. The ratios of the medians and the share of rows on which the forms choose a
code at the same distance to 1e-5 are printed as JSON.
"""

import argparse
import json
from collections.abc import Callable

import torch
from noiseworks.core.timing import in_turns
from noiseworks.ldm.first_stage.codebook import nearest_codes
from torch import Tensor


def straightforward(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest codes from the whole table of distances."""
    return torch.cdist(latents, codebook).argmin(dim=1)


def expanded(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest codes from |z|² + |c|² - 2 z·c, the whole table at once, as the authors' code does."""
    distances = latents.square().sum(dim=1, keepdim=True) + codebook.square().sum(dim=1)
    return (distances - 2 * latents @ codebook.T).argmin(dim=1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"rows": 16384, "codes": 8192, "dim": 3, "turns": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="measure the compiled search, too")
    chosen = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(chosen.rows, chosen.dim, generator=generator).to(chosen.device)
    codebook = torch.randn(chosen.codes, chosen.dim, generator=generator).to(chosen.device)
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "search": nearest_codes,
        "cdist": straightforward,
        "expanded": expanded,
    }
    if chosen.compile:
        forms["compiled"] = torch.compile(nearest_codes)
    arms = {name: lambda turn, form=form: form(latents, codebook) for name, form in forms.items()}
    times = in_turns(arms, chosen.turns, device=chosen.device, keep=True)
    medians = {name: one.median for name, one in times.items()}
    reach = {name: (latents - codebook[one.results[-1]]).norm(dim=1) for name, one in times.items()}
    report = {
        "seconds": medians,
        "ratio": {name: value / medians["search"] for name, value in medians.items()},
        "same distance": {
            name: float(((found - reach["search"]).abs() < 1e-5).double().mean())
            for name, found in reach.items()
        },
    }
    print(json.dumps(vars(chosen) | report, indent=2))


if __name__ == "__main__":
    main()
