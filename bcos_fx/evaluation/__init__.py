"""How well explanations explain: localisation, deletion, accuracy, and post-hoc methods to compare with."""
