"""The stages of a conversion, each a function from what the stage before it found."""
