"""FreeCache and guided diffusion: cached and guided decoding of masked diffusion language models, several times faster."""
