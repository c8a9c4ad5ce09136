"""Builders: the new modules that rules put in place of matched nodes. Each file registers its own."""
