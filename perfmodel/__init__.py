"""The nouns and the arithmetic of sorted speculative decoding: records, files, formulas, and nothing that needs a GPU."""
