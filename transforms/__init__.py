"""Dictionary transforms and the pure functions under them; imports nothing else of this bundle."""
