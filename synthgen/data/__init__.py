"""Data: NIfTI, tissue maps, training stores, augmentation, batches and shards."""
