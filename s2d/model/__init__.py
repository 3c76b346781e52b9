"""The decoder: layers, attention, caches, CUDA graphs, and the choice of tokens."""
