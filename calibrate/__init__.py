"""From evidence to decisions: latency fits, confidence calibration, policy search, comparison of plan and run."""
