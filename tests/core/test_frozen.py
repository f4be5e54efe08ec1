"""Engines with weights of their own: they resolve, for evaluations, and no training begins with one."""

import pytest
from lightrft_core.errors import UserError
from lightrft_core.frozen import is_frozen, require_trainable

OPENAI = ("engine.use=openai", "engine.url=http://127.0.0.1:8000")


def test_an_engine_that_takes_weights_trains(load_run):
    run_file = load_run()
    assert not is_frozen(run_file.engine)
    require_trainable(run_file)


def test_one_with_weights_of_its_own_is_refused_with_what_to_use(load_run):
    run_file = load_run(sets=OPENAI)
    assert is_frozen(run_file.engine)
    with pytest.raises(UserError, match=r"engine\.use: engine openai takes no weights.*Train with `embedded`"):
        require_trainable(run_file)
