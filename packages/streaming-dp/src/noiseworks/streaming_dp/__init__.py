"""Streaming Diffusion Policy (arXiv 2406.04806): a persistent buffer of unevenly noised actions.

Read `levels` (the table of chunks), `buffer`, `networks` (a level for each position), `schedulers` and `edm` (the
reverse steps), `policy` (the control cycle), `regimes` and `training`; `hosts` converts, stores and reads policies.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
