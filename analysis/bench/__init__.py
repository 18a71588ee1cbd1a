"""How fast this project is, measured side by side: `python -m analysis.bench`."""
