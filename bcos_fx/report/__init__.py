"""The report of a conversion: its data, how they are read off a graph, and how they are shown."""
