"""The evidence: the `smoothout` command, which trains, measures and shows.

    smoothout compare    several methods, from several seeds, on one data set

Needs the extra: `pip install "smoothout-jax[experiments]"`.
"""
