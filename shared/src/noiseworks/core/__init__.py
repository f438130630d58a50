"""The small base of every Noiseworks method: schedules, noise, steps, kernels, artifacts and the CLI frame.

Import the module you need (`from noiseworks.core import schedules`); this package imports nothing by itself,
so that a command line can print its help without loading torch.
"""
