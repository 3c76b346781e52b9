"""Model folders: configs, weights, exits, and the memory that models need."""
