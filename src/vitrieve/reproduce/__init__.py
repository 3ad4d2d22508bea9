"""The paper's tables and figures as plans of runs, and their pages. First file: ``published.py``."""
