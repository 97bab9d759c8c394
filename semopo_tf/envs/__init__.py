"""Environments seen through pixels, what moves behind them, and the loop that plays them. Imports the vocabulary and
`storage`.
"""
