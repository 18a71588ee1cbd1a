"""Further trials of the methods, beyond agreement with the truths: each a module with its passes and its table."""
