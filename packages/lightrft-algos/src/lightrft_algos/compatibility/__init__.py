"""Bundles that make the choices of other libraries, where these differ from the papers: what a run of theirs computes.

Each is pinned to defaults or examples of one version of its library; what cannot be said in a run file is told in
`when`. They are data: no component is there for them alone.
"""

from lightrft_algos.compatibility.openrlhf import OPENRLHF
from lightrft_algos.compatibility.trl import TRL
from lightrft_algos.compatibility.verl import VERL

COMPATIBILITY = (*VERL, *TRL, *OPENRLHF)
