"""Results as records and as text: plans, portfolios, reports, residuals, validations."""
