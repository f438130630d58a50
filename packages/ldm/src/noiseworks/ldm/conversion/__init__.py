"""To and from other formats: the authors' checkpoints in, diffusers pipelines out."""
