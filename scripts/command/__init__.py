"""Command lines: start-up, overrides of config values, errors in one sentence, running a config, whole files.

Imports nothing of ours."""
