"""The paper's protocol: planning and running its jobs, and the table of results. `reproduce.py` is its command."""
