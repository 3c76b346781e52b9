"""Training: sorted fine-tuning, drafts from a target, and the reference family."""
