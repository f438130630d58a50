"""The second stage (sections 3.2 and 3.3): the denoiser in the latents, its training and its samplers.

Read `objective` (the formulas), `trainer`, `samplers`, then `sampling`; `recipes` holds the models of the tables.
"""
