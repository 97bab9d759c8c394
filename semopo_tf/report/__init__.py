"""From the files of runs to tables, figures and one page. Imports `storage`, `config` and the dataset cards; never
TensorFlow.
"""
