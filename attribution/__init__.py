"""Attribution of a vision transformer regressor: the model, its heads, and the methods that score them."""

from . import early_stop as early_stop
