"""What detectors are made of: the interface, batches, hand-crafted regions, visual words, networks."""
