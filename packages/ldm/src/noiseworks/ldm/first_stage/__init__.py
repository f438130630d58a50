"""The first stage (section 3.1): the autoencoder, its discriminator, its losses, its training and its measures.

Read `losses` and `codebook`, then `trainer`; `autoencoding` is the command from images to an autoencoder.
"""
