"""One run: its directory, trainer, checkpoints, evaluation, and how it stops. Imports every folder but the commands."""
