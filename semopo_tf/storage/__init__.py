"""Files and everything that comes from outside: written whole or not at all, read with limits. Imports the vocabulary
only.
"""
