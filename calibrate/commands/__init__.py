"""Commands that plan and compare: `s2d-plan` and `s2d-compare`."""
