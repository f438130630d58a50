"""The verb `claim` of every method: an attribute of this module named like a method runs that method's claim.

The package registers this module under the entry-point group `noiseworks.verbs`; the command line of each method then
has the verb, and imports the module only when it is used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from noiseworks.bench.claims import ScaleName
from noiseworks.bench.runner.session import DEFAULT_OUT, BenchResult, Names, OpenFlag, bench
from noiseworks.core.options import Whole


def __getattr__(method: str) -> Callable[..., BenchResult]:
    if method.startswith("_"):
        raise AttributeError(method)
    return verb_of(method)


def verb_of(method: str) -> Callable[..., BenchResult]:
    """Return the function that runs one method's claim."""

    def claim(
        *,
        scale: ScaleName = "quick",
        seeds: Names = None,
        jobs: Whole | None = None,
        out: Annotated[Path, Parameter(name=["--out", "-o"])] = DEFAULT_OUT,
        model: str | None = None,
        device: str = "cpu",
        data: Names = None,
        open_report: OpenFlag = None,
    ) -> BenchResult:
        """Run the paper's claim against its baselines, judge it and write the report.

        Args:
            scale: `smoke` only proves that it runs, `quick` is a first look, `tune` is `laptop` on seeds for tuning
                and judges nothing, `laptop` judges, `full` takes a real model and real data.
            seeds: Seeds instead of those of the scale.
            jobs: Processes at a time; by default the number of cores, at most 4, and 1 on a CUDA device.
            out: Folder of results and report.
            model: Model instead of the testbed's: a directory, a hub id or `testbed:<name>`.
            device: `cpu`, `cuda`, `cuda:<n>`, `mps` or `auto`.
            data: What the claim needs of the user's at a scale, as `--data name=path`; once for each.
            open_report: Whether to open the report in the browser; by default on a terminal only.
        """
        return bench(
            methods=[method],
            scale=scale,
            seeds=seeds,
            jobs=jobs,
            out=out,
            model=model,
            device=device,
            data=data,
            open_report=open_report,
        )

    return claim
