"""From per-picture scores and maps to tables, figures and verdicts; the only package that imports the other two."""
