"""The rewriting engine: the op vocabulary, rules as data, matching, and the one place where a graph is edited."""
