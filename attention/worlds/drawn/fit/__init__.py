"""How the shipped weights of the drawn faces are made."""
