"""The runtime: nested-exit drafts, verification, generation and sorted fine-tuning on torch."""
