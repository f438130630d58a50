"""The command line of the kernels: `noiseworks kernels list` and `noiseworks kernels bench`."""

from noiseworks.core.cli import Command, make_app

app = make_app(
    "kernels",
    {
        "list": Command("noiseworks.core.kernels.bench:list_ops", "List the ops and what runs them here."),
        "bench": Command("noiseworks.core.kernels.bench:bench", "Measure an op against eager code."),
    },
    distribution="noiseworks-core",
)
