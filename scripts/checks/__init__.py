"""Checks of a datalist before training: verification against rules, and the audit for shortcuts.

May import everything up to `scripts.inference`."""
