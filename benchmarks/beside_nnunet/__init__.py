"""Our network of patches and the real nnU-Net v2, trained on the same cases for the same CPU time."""
