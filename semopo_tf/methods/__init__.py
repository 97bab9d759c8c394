"""What learns: losses, world models, imagination, actor-critic, and one module per method. Imports the vocabulary and
`nets`.
"""
