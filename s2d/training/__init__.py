"""Train drafts by sorted fine-tuning, calibrate and reduce them; train the reference family."""
