"""A module that has drawn from polars' own generator of random numbers in the zygote."""

import polars as pl

SHUFFLED = pl.Series(range(1000)).shuffle()
