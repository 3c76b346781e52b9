"""The command `s2d-profile`: its flags, inputs, steps and output."""
