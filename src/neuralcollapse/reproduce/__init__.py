"""The paper's experiments: what they claim, their runs, their checks, their pages."""
