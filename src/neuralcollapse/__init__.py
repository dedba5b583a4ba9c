"""Measure, prove and use neural collapse in PyTorch.

The public names stand in `__init__.pyi`; each is loaded when first used, so that importing this package costs next to
nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
