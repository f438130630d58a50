"""MoDE (arXiv 2412.12953): a diffusion policy with experts routed by the noise level, cached before it runs."""
