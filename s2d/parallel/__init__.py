"""One model on several devices: ranks, shards, and failures of a rank."""
