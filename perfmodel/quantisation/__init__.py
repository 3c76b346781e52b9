"""How the weights of a model are stored: formats, schemes, and the quantisation blocks of checkpoints."""
