"""The paper's protocol as a program: what has to run, running it, and the table that comes of it. `reproduce.py` is its command."""
