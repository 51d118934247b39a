"""rnnc: recurrent speech denoisers small enough for a microcontroller."""

__version__ = "0.1.0"
