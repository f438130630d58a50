"""First-hitting sampling: exact, fast sampling of masked diffusion models, and categorical sampling in the right precision."""
