"""Networks and the machinery around them: layers, the recurrent state-space model, distributions, optimisers. Imports
the vocabulary only.
"""
