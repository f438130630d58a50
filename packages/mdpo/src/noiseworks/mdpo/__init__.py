"""MDPO and running-confidence remasking (RCR): a better sampler and an RL trainer for masked diffusion language models."""
