"""From per-picture scores and maps to tables, figures and verdicts; the only package that imports the other two."""

from attribution import early_stop as early_stop
