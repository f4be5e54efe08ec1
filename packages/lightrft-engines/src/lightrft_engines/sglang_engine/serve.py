"""SGLang's server with what LightRFT adds to its schedulers: `python -m lightrft_engines.sglang_engine.serve FLAGS`.

The flags are those of `sglang.launch_server`.
"""

import os
import sys
from collections.abc import Sequence

from lightrft_engines.sglang_engine.arguments import prepare
from lightrft_engines.sglang_engine.leftovers import remove_loads
from lightrft_engines.sglang_engine.scheduler import LOADER, run, write_texts


def main(words: Sequence[str]) -> None:
    """Serve until it is told to end."""
    prepare()
    from sglang.srt.entrypoints.http_server import get_global_state, launch_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    more = [] if "--custom-weight-loader" in words else ["--custom-weight-loader", LOADER]
    try:
        launch_server(
            prepare_server_args([*words, *more]),
            run_scheduler_process_func=run,
            run_detokenizer_process_func=write_texts,
        )
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
        if (state := get_global_state()) is not None:
            remove_loads(state.tokenizer_manager)


if __name__ == "__main__":
    main(sys.argv[1:])
