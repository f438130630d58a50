"""Training runs that can be stopped at any moment: folder, order of data, loops, figures, averages.

    with open_run(out, {"data": data, "fit": options}) as run:
        fit(module, Batches(table, options.batch_size, seed=options.seed), run=run, options=options)

The same command goes on with a run that was stopped, to the numbers of one that was not; other settings in its folder
are refused. `fit` is for supervised training (a Lightning module), `rounds` for loops that make their own data.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
