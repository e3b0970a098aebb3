"""Serves with its standard error closed."""

import os

from tests.engine.children import serves

os.close(2)
serves.main()
