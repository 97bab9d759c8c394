"""One run: its directory, the trainer, checkpoints, evaluation, and what happens when it is stopped. Imports everything
but the commands.
"""
