"""Plans, portfolios, draft shapes, comparisons, and suggested commands."""
