"""Read prompts and training texts from files of any common format; needs no torch."""
