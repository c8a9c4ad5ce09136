"""Predicates: named conditions that a rule may require of a node. Each file registers its own."""
