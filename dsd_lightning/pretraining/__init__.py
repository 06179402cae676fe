"""How the models in assets/ were made."""
