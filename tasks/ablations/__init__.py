"""The tables of the thesis: what their rows are, how they are run, and what is written of them."""
