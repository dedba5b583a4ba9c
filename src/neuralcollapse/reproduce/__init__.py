"""The paper's experiments: what they claim, their runs, their checks, their pages."""

import lazy_loader as _lazy_loader

# Loaded when first used: most files here load without torch.
__getattr__, __dir__, __all__ = _lazy_loader.attach(
    __name__, submod_attrs={"one_run": ["run_one"], "runner": ["ExperimentFolder"]}
)
