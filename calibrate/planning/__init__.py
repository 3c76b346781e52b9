"""Plans, portfolios, draft shapes, comparisons, and the next command."""
