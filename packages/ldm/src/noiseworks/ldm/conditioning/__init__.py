"""What images are conditioned on (section 3.3): classes, texts, layouts, maps, masks, small images, neighbours."""
