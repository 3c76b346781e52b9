"""What a draft is asked to do: exits, thresholds, draft lengths, stop rules, and sampling."""
