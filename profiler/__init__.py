"""From a device to evidence files: latency measured in the running loop, and acceptance traces."""
