"""Episodes on disk, the dataset made of them, and the batches drawn from it. Imports the vocabulary and `storage`."""
