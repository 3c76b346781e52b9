"""Records that commands write: plans, portfolios, reports, residuals, validations."""
