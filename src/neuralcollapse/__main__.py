"""`python -m neuralcollapse`: the command line."""

import sys

from neuralcollapse.cli import main

sys.exit(main())
