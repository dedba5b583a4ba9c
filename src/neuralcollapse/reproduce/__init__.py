"""The paper's experiments: YAML files, one runner for all of them, and checks of what the paper claims."""
