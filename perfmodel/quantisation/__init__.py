"""Storage of weights: formats, schemes, and the quantisation blocks of checkpoints."""
