"""Parts of engines.py: what it measures, predicts, checks and writes."""
