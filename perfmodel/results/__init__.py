"""Results of the commands as records and as text: plans, portfolios, reports, residuals, validations."""
