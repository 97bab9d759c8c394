"""How learning runs on a device: compiled loops, what XLA compiles, devices and their memory. Knows no method."""
