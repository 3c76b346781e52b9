"""Records, files and formulas of sorted speculative decoding; nothing needs a GPU."""
