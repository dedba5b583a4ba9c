"""`python -m neuralcollapse`: the command line."""

from neuralcollapse.cli import script

script()
