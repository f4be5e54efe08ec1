"""The conformance kit: `check_component` tells whether a component keeps what its kind promises.

    from lightrft_core.plugins import Plugins
    from lightrft_core.testing import check_component

    plugins = Plugins.load()
    component = plugins.find("loss", "acme", where="test")
    failures = [result for result in check_component("loss", component, plugins) if not result.ok]

`toys` holds components without torch to test against. Importing this package imports no torch either.
"""

from lightrft_core.testing.conformance import check_component
from lightrft_core.testing.results import CheckResult

__all__ = ["CheckResult", "check_component"]
