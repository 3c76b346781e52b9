"""What a pass computes and costs: bytes and FLOP, the latency law, and profiles of measured passes."""
