"""Which classes a network answers with: another head, and the classes that data names."""
