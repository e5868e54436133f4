"""The primitives in plain ``xp``: the text to read, and what every backend must agree with."""
