"""Programs that run inside an engine's own environment. They import the standard library and the engine, nothing of ours."""
