"""A page on which a person says which of two images is better."""
