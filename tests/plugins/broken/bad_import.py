"""A plugin that cannot be imported: its author forgot to declare a dependency."""

import a_package_that_nobody_has  # noqa: F401

LIGHTRFT_API = 1
