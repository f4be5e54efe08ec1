"""What torchrun runs in `test_two_ranks.py`."""

from tests.engines.served_ranks import main
from tests.engines.sglang_engine.opening import build

if __name__ == "__main__":
    main(build)
